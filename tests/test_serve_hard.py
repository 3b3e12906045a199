"""serve.py as a process under clients that are slow, rude, gone or odd, and stopped in the middle of it."""

import http.client
import io
import json
import select
import socket
import struct
import threading
import time
import zipfile
import zlib

import pytest

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason="needs requirements-serve.txt")

from helpers_bad import two_class_network  # noqa: E402
from helpers_networks import encoded_image  # noqa: E402
from helpers_serve import running  # noqa: E402

PNG = {"Content-Type": "image/png"}
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return two_class_network(tmp_path_factory.mktemp("weights") / "two.pt")


@pytest.fixture(scope="module")
def service(weights, tmp_path_factory):
    with running([weights], tmp_path_factory.mktemp("place") / "empty", "--timeout", "1") as service:
        yield service
        status, said = service.stop()
        assert status == 0 and "Traceback" not in said, said[-4000:]
        assert service.files() == []


@pytest.fixture(autouse=True)
def still_well(request):
    yield
    if "service" in request.fixturenames:
        service = request.getfixturevalue("service")
        assert service.ask("POST", "/v1/predict", encoded_image(), PNG)[0] == 200


def refusal(answer):
    status, _, body = answer
    return status, json.loads(body)["detail"]


def test_client_disconnect_in_body(service):
    name = 'polyolo_requests_total{route="/v1/predict",status="499"}'
    before = service.measure(name)
    for _ in range(70):  # more than there are places
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(5000))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as if killed
    end = time.monotonic() + 5
    while service.measure(name) == before or time.monotonic() < end - 4:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_slow_bodies_do_not_block_others(weights, tmp_path):
    """More clients than the queue has places send a part of their bodies and wait: the others are answered."""
    with running([weights], tmp_path / "empty", "--timeout", "20", "--max-queue", "16") as service:
        connections = []
        try:
            for _ in range(70):
                connections.append(socket.create_connection(("127.0.0.1", service.port)))
                connections[-1].sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(500))
            time.sleep(0.5)  # all are being received
            start = time.monotonic()
            for _ in range(3):
                assert service.ask("POST", "/v1/predict", encoded_image(), PNG, timeout=15)[0] == 200
            assert time.monotonic() - start < 10
        finally:
            for connection in connections:
                connection.close()


def test_bytes_in_progress_are_limited(weights, tmp_path):
    options = ("--timeout", "20", "--max-queue", "16", "--max-images", "2", "--max-body-mb", "1")
    with running([weights], tmp_path / "empty", *options) as service:
        connections = []
        try:
            for _ in range(17):  # one more than the queue has places for bodies of the largest size
                connections.append(socket.create_connection(("127.0.0.1", service.port), timeout=10))
                connections[-1].sendall(HEAD + b"Content-Length: 1048576\r\n\r\n" + bytes(2**20 - 1000))
            answered, _, _ = select.select(connections, [], [], 15)  # a busy service may read them in any order
            assert b"503" in b"".join(connection.recv(100) for connection in answered)
        finally:
            for connection in connections:
                connection.close()
        assert service.ask("POST", "/v1/predict", encoded_image(), PNG, timeout=15)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /health HTT", HEAD, HEAD + b"Content-Length: 9\r\n\r\nabc"])
def test_slow_client_is_disconnected(service, sent):
    start = time.monotonic()
    said = service.say(sent, wait=10)
    assert 0.9 < time.monotonic() - start < 4
    assert said.startswith(b"HTTP/1.1 408") if sent.endswith(b"abc") else said == b""


def test_header_timeout(service):
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection, pytest.raises(OSError):
        for _ in range(100):
            connection.sendall(b"A" if time.monotonic() - start < 8 else b"never reached")
            time.sleep(0.1)
    assert time.monotonic() - start < 5


def test_header_and_url_limits(service):
    huge = b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000
    assert service.say(huge, wait=5)[:12] in (b"HTTP/1.1 400", b"")
    status, _, _ = service.ask("GET", "/v1/models?" + "a" * 30_000)
    assert status == 200  # parameters that the route does not have


@pytest.mark.parametrize("chunked", [False, True])
def test_body_limit_is_413(service, chunked):
    body = bytes(40 << 20)
    if chunked:
        status, _, text = service.ask("POST", "/v1/predict", (body[:65536] for _ in range(265)), PNG)
    else:
        status, _, text = service.ask("POST", "/v1/predict", body, PNG)
    assert status == 413 and b"larger than 16 MiB" in text


def bomb(width, height):
    """Return a PNG of one bit per pixel, all of them zero."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes((width // 8 + 1) * height), 9)
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_image_pixel_limit(service):
    resident = "process_resident_memory_bytes"
    before = service.measure(resident)
    bombs = [bomb(10_000, 10_000), bomb(60_000, 60_000)]
    start = time.monotonic()
    for data in bombs:
        status, detail = refusal(service.ask("POST", "/v1/predict", data, PNG))
        assert status in (400, 422) and ("pixels" in detail or "large" in detail)
    assert time.monotonic() - start < 2
    assert not service.measure(resident) - before > 50 << 20


def test_archives_are_refused(service):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", encoded_image(number))
    for kind, status in (("application/zip", 415), ("application/octet-stream", 400), ("image/png", 400)):
        assert service.ask("POST", "/v1/predict", data.getvalue(), {"Content-Type": kind})[0] == status


def test_unicode_file_names(service):
    name = "街 ulică ☃.png"
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="' + name.encode() + b'"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    _, _, text = service.ask("POST", "/v1/predict", body + encoded_image() + b"\r\n--x--\r\n", kind)
    assert json.loads(text)["images"][0]["name"] == name


def test_http_1_0_and_other_methods(service):
    body = encoded_image()
    old = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = service.say(old)
    assert answer.startswith(b"HTTP/1.1 200") and b'"images"' in answer
    for path in ("/", "/docs", "/health"):
        status, headers, text = service.ask("HEAD", path)
        assert status == 200 and text == b"" and int(headers["content-length"]) > 10
    for method in ("OPTIONS", "PUT", "TRACE", "PATCH"):
        assert service.ask(method, "/v1/predict")[0] == 405
    upgrade = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert service.say(upgrade).startswith(b"HTTP/1.1 200")
    for kind in ("text/plain", "application/json", "video/mp4", "", "/", "image"):
        assert service.ask("POST", "/v1/predict", body, {"Content-Type": kind})[0] == 415
    assert service.ask("POST", "/v1/predict", body, {"Content-Type": "IMAGE/PNG; x=y"})[0] == 200


def test_pipelined_requests(service):
    body, said = encoded_image(), b""
    one = HEAD + b"Content-Length: %d\r\n" % len(body)
    said = service.say((one + b"\r\n" + body) * 2 + one + b"Connection: close\r\n\r\n" + body)
    assert said.count(b"HTTP/1.1 200") == 3


def test_graceful_shutdown_under_load(weights, tmp_path):
    outcomes, stopped = [], threading.Event()

    def client(port):
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            try:
                for _ in range(1000):
                    begun = False
                    connection.request("POST", "/v1/predict", encoded_image(height=480, width=640), PNG)
                    answer = connection.getresponse()
                    begun = True
                    body = answer.read()
                    outcomes.append((answer.status, bool(json.loads(body))))
            except (OSError, http.client.HTTPException) as error:
                outcomes.append((type(error).__name__, not begun))  # none that had begun to be answered
                if stopped.is_set():
                    return
            finally:
                connection.close()

    with running([weights], tmp_path / "empty") as service:
        threads = [threading.Thread(target=client, args=(service.port,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        stopped.set()
        status, said = service.stop()
        for thread in threads:
            thread.join(20)
        assert status == 0 and "Traceback" not in said, said[-2000:]
    assert all(good for _, good in outcomes), outcomes
    gone = {"ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "RemoteDisconnected"}
    kinds = {kind for kind, _ in outcomes}
    assert 200 in kinds and kinds <= {200, 503, *gone}
