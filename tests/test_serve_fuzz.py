"""The service under malformed requests: no fault, no crash, nothing on disk, bounded memory.

POLYOLO_FUZZ=1000 python -m pytest tests/test_serve_fuzz.py -s     (that many requests in each test; usually 40)
"""

import contextlib
import json
import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers_run import ROOT

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason="needs requirements-serve.txt")

from helpers_networks import encoded_image, write_networks  # noqa: E402
from helpers_serve import running  # noqa: E402

COUNT = int(os.environ.get("POLYOLO_FUZZ") or 40)
GROWTH_MB = 300  # of the process; images of up to 50 million pixels are decoded on the way
BAD = ROOT.parent / "shared" / "badimages"
KEYS = ("conf", "iou", "max_det", "classes", "agnostic", "size", "masks", "pixels", "model", "foo")
VALUES = ("0.5", "-1", "1e9", "nan", "", "true", "rle", "boxes", "masks", "pixels", "whole", "%00", "%C3%A9", "5", "64")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    weights = write_networks(tmp_path_factory.mktemp("networks"))
    folder = tmp_path_factory.mktemp("place") / "empty"
    with running(weights.values(), folder, "--conf-thres", "0", "--timeout", "5") as service:
        yield service
        status, said = service.stop()
        assert status == 0 and "Traceback" not in said, said[-4000:]


MARKS = 2**14  # bytes: a file that is read for the first time is marked so by the file system, a page each


def written(service):
    """Return the bytes that the process has had stored, 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{service.process.pid}/io").read_text()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in text.splitlines())["write_bytes"])


@contextmanager
def harmless(service, name):
    """Yield a counter of statuses; afterwards the service is as it was, and what happened is printed."""
    resident = "process_resident_memory_bytes"
    service.ask("POST", "/v1/predict", encoded_image(), {"Content-Type": "image/png"})
    before, stored, statuses = service.measure(resident), written(service), Counter()
    yield statuses
    assert service.process.poll() is None
    status, _, text = service.ask("GET", "/health")
    assert (status, json.loads(text)) == (200, {"status": "ok", "waiting": 0})
    grown = (service.measure(resident) - before) / 2**20
    total, semantic_classes = sum(statuses.values()), dict(sorted(statuses.items()))
    sys.stdout.write(f"\n{name}: {total} requests, statuses {semantic_classes}, {grown:+.0f} MiB\n")
    assert not grown > GROWTH_MB
    assert written(service) - stored <= MARKS and service.files() == []
    assert statuses and max(statuses) < 500


def test_openapi_requests(service):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    import hypothesis
    import requests

    described = schemathesis.openapi.from_dict(json.loads(service.ask("GET", "/openapi.json")[2]))
    from schemathesis.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 5
    modes = list(schemathesis.GenerationMode)
    quiet = {"deadline": None, "database": None, "derandomize": True, "phases": [hypothesis.Phase.generate]}
    with harmless(service, "from the description") as statuses, requests.Session() as session:
        for operation in operations:
            share = COUNT // 2 if operation.path == "/v1/predict" else COUNT // 8
            for mode in modes:

                @hypothesis.settings(
                    max_examples=max(2, share // len(modes)),
                    suppress_health_check=list(hypothesis.HealthCheck),
                    **quiet,
                )
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def ask(case):
                    answer = case.call(base_url=f"http://127.0.0.1:{service.port}", session=session, timeout=30)
                    statuses[answer.status_code] += 1
                    assert answer.status_code < 500, answer.text
                    if answer.status_code not in (404, 405):  # of addresses and methods that are not described
                        case.validate_response(answer, checks=checks)

                with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing about this route can be wrong
                    ask()


def test_broken_images(service):
    files = sorted(path for path in BAD.rglob("*") if path.is_file())
    if not files:
        pytest.skip(f"no broken images at {BAD}")
    with harmless(service, "broken images") as statuses:
        for number in range(max(COUNT, len(files)) if COUNT > 40 else COUNT):
            path = files[number % len(files)]
            data, model = path.read_bytes(), ("boxes", "masks", "whole", "pixels")[number // len(files) % 4]
            kind = "image/png"
            if number % 2:
                data, kind = in_form(data, path.name.encode()), "multipart/form-data; boundary=x"
            headers = {"Content-Type": kind}
            status, _, text = service.ask("POST", f"/v1/predict?max_det=2&model={model}", data, headers)
            statuses[status] += 1
            assert status < 500 and json.loads(text), (path.name, text)
    assert statuses[200] and statuses[400]


def in_form(data, name=b"a.png"):
    """Return an image as the only file of a form whose boundary is x."""
    return (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="'
        + name
        + b'"\r\n\r\n'
        + data
        + b"\r\n--x--\r\n"
    )


def mutated(rng, data):
    """Return bytes with some changed, cut off or repeated."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        place = int(rng.integers(0, max(1, len(data))))
        kind = rng.integers(0, 4)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] = rng.integers(0, 256)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = rng.bytes(int(rng.integers(1, 40)))
        else:
            data[place:place] = data[place : place + 64]
    return bytes(data)


def test_random_requests(service):
    rng = np.random.default_rng(0)
    good = [encoded_image(suffix=suffix) for suffix in (".png", ".jpg", ".bmp", ".tiff", ".webp")]
    with harmless(service, "random requests") as statuses:
        for number in range(COUNT):
            data = mutated(rng, good[number % 5]) if number % 7 else good[number % 5]
            kind = str(rng.choice(["image/png", "application/octet-stream", "image/x; charset=\xe9"]))
            if number % 3 == 0:
                data, kind = in_form(data), "multipart/form-data; boundary=x"
                data = mutated(rng, data) if number % 2 else data
            pairs = [f"{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.choice((0, 0, 1, 2)))]
            place = "/v1/object-detection/boxes" if number % 11 == 0 else "/v1/predict"
            status, _, text = service.ask("POST", f"{place}?{'&'.join(pairs)}", data, {"Content-Type": kind})
            statuses[status] += 1
            assert status < 500 and json.loads(text), (number, text)
    assert {200, 400, 422} <= set(statuses)


def test_malformed_http(service):
    rng = np.random.default_rng(0)
    body = encoded_image()
    whole = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/png\r\n"
    whole += b"Content-Length: %d\r\n\r\n" % len(body) + body
    with harmless(service, "hardly HTTP") as statuses:
        for number in range(COUNT // 4):
            head, rest = whole[:130], whole[130:]
            answer = service.say((mutated(rng, head) if number else head) + rest, wait=0.2)
            status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
            assert status < 500 and (status or not answer), answer
            statuses[status] += 1
    assert statuses[200] and statuses[400]
