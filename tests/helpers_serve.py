"""For tests of the service: a service with a client, forms, requests driven by hand."""

import asyncio
import io
from contextlib import contextmanager

from starlette.testclient import TestClient

from utils.service.app import build_app
from utils.service.predictor import Predictor
from utils.service.settings import ServiceSettings


def form(*pictures, name="image"):
    """Return pictures as the files of a form."""
    return [(name, (f"{i}.png", io.BytesIO(data), "image/png")) for i, data in enumerate(pictures)]


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
