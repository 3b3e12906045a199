"""serve.py as a process: it stops gracefully, takes its key from the environment, and says what is wrong."""

import http.client
import json
import os
import signal
import socket
import threading
import time

import pytest

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason="needs requirements-serve.txt")

from helpers_bad import two_class_network  # noqa: E402
from helpers_networks import encoded_image  # noqa: E402
from helpers_serve import running  # noqa: E402

import serve as program  # noqa: E402
from benchmarks import machine, serve_load  # noqa: E402
from tools.service import program as service_program  # noqa: E402
from utils.core.errors import UserError  # noqa: E402

HEADERS = {"X-API-Key": "from the environment", "Content-Type": "image/png"}


@pytest.fixture
def weights(tmp_path):
    return two_class_network(tmp_path / "two.pt")


def asked(port, answers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/predict?conf=0&max_det=3", encoded_image(height=1200, width=1600), HEADERS)
    answer = connection.getresponse()
    answers.append((answer.status, len(json.loads(answer.read())["images"][0]["detections"])))
    connection.close()


def test_sigterm_finishes_requests(weights, tmp_path):
    key = {"API_KEY": HEADERS["X-API-Key"]}
    with running([weights], tmp_path / "empty", "--max-wait-ms", "1500", **key) as service:
        assert service.ask("GET", "/v1/models")[0] == 401
        answers = []
        thread = threading.Thread(target=asked, args=(service.port, answers))
        thread.start()
        time.sleep(0.7)  # the image waits for others to come
        assert not answers
        status, said = service.stop()
        thread.join(20)
        assert answers == [(200, 3)]
        assert status == 0 and "Traceback" not in said
        assert service.files() == []


def test_used_port_and_missing_weights(weights):
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot listen on this address"):
            program.run(weights=[str(weights)], port=port, device="cpu")
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        program.run(weights=["nowhere.pt"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_missing_packages(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(service_program.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"serve\.py needs the package fastapi; pip install -r requirements-serve\.txt"):
        service_program._require_packages()
    assert os.environ.get("API_KEY") is None


def test_load_benchmark(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    line = ["--weights", str(weights), "--seconds", "0.6", "--rounds", "1", "--clients", "3", "--write"]
    one, several = serve_load.main(line)
    for phase, clients in ((one, 1), (several, 3)):
        assert phase.clients == clients and phase.faults == [] and len(phase.latencies_ms) >= clients
        assert phase.per_second > 0 and 0 < phase.percentile(50) <= phase.percentile(95)
        images = sum(int(size) * count for size, count in phase.batches.items() if "to" not in size)
        assert images == len(phase.latencies_ms)  # three clients fill no batch whose size is given as a range
    assert "| 3 |" in (tmp_path / "results" / "serve_load.md").read_text()


def test_batch_size_histogram():
    name = 'polyolo_batch_images_bucket{le="%s"}'
    before = {name % "1.0": 1.0, name % "2.0": 1.0, name % "4.0": 2.0}
    now = {name % "1.0": 4.0, name % "2.0": 4.0, name % "4.0": 7.0, "polyolo_batch_images_count": 7.0}
    assert serve_load.batch_sizes(now, before) == {"1": 3, "3 to 4": 2}
