"""For tests of the service: in this process with a client, as a process of its own, forms, requests driven by hand."""

import asyncio
import contextlib
import http.client
import io
import re
import signal
import socket
import subprocess
from contextlib import contextmanager

from helpers_run import ROOT, command, environment
from starlette.testclient import TestClient

from tools.service.app import build_app
from tools.service.predictor import Predictor
from tools.service.service_settings import ServiceSettings


def form(*images, name="image"):
    """Return images as the files of a form."""
    return [(name, (f"{i}.png", io.BytesIO(data), "image/png")) for i, data in enumerate(images)]


@contextmanager
def serving(weights, change=None, **settings):
    """Yield a client of a service; `change` gets its predictor before it starts."""
    settings = ServiceSettings(weights=tuple(map(str, weights)), device="cpu", **{"conf_thres": 0.0, **settings})
    predictor = Predictor(settings)
    if change is not None:
        change(predictor)
    app = build_app(settings, predictor)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def driven(app, messages, path="/v1/predict", content_type=b"image/png"):
    """Send one request by hand, `messages` being what the server receives; return status of the answer.

    A message may be a number: the client waits so many seconds.
    """
    sent = []

    async def run():
        left = list(messages)

        async def receive():
            while left and not isinstance(left[0], dict):
                await asyncio.sleep(left.pop(0))
            if left:
                return left.pop(0)
            return await asyncio.Event().wait()  # nothing ever comes again

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", content_type)]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("t", 80), "client": ("c", 1)}
        async with app.router.lifespan_context(app):
            await app({**scope, "root_path": "", "asgi": {"version": "3.0"}}, receive, send)

    asyncio.run(run())
    return next(message["status"] for message in sent if message["type"] == "http.response.start")


class Running:
    """serve.py as a process of its own, in an empty folder, asked over loopback."""

    def __init__(self, process, port, folder):
        self.process, self.port, self.folder = process, port, folder

    def ask(self, method, path, body=None, headers=None, timeout=60):
        """Return status, headers and body of the answer to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def say(self, data, wait=5.0):
        """Send bytes that need not be HTTP; return what comes back until the service hangs up, or `wait` seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            found = b""
            with contextlib.suppress(OSError):
                connection.sendall(data)
                while piece := connection.recv(1 << 16):
                    found += piece
            return found

    def measure(self, name):
        """Return one of the numbers the service counts; NaN where it does not."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), float("nan"))

    def files(self):
        """Return the files that the process left (importing torchvision makes an empty folder for temporary files)."""
        return sorted(path for path in self.folder.rglob("*") if not path.is_dir())

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Send a signal; return the status the process left with, and what it had written to the console."""
        self.process.send_signal(number)
        status = self.process.wait(seconds)
        return status, self.process.stdout.read()


@contextmanager
def running(weights, folder, *options, **environs):
    """Yield serve.py as a process; `folder` is its working folder, its home and where its temporary files would be."""
    folder.mkdir(exist_ok=True)
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(folder))
    env = {**environment(), **places, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environs}
    line = command(str(ROOT / "serve.py"), "--weights", *weights, "--port", "0", "--device", "cpu", *options)
    process = subprocess.Popen(line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = ""
        while not (found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", said)):
            text = process.stdout.readline()
            assert text, f"serve.py left with {process.wait()}: {said[-2000:]}"
            said += text
        yield Running(process, int(found[1]), folder)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
