"""From the options of serve.py to a running server."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from utils.core.errors import UserError
from utils.core.log import LOGGER

_NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def serve_models(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run then are finished first."""
    _require_packages()
    import uvicorn

    from tools.service.app import build_app
    from tools.service.header_timeout import patient
    from tools.service.memory_trim import hold_level
    from tools.service.service_settings import ServiceSettings
    from utils.backends.open_weights import find_weights

    values = {**vars(options), "api_key": options.api_key or os.environ.get("API_KEY", "")}
    values["weights"] = tuple(str(path) for path in find_weights(options.weights, options.download))
    settings = ServiceSettings(**values)
    if settings.level_memory and not hold_level():
        raise UserError("--level-memory: the C library of this system cannot be told so; leave it out")
    app = build_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=int(settings.timeout) + 1,
        http=patient(settings.timeout),
        ws="none",
        server_header=False,
    )

    class Server(uvicorn.Server):
        async def startup(self, *arguments: Any, **keywords: Any) -> None:
            await super().startup(*arguments, **keywords)
            port = self.servers[0].sockets[0].getsockname()[1]  # the system's choice for --port 0
            LOGGER.info(f"listening on http://{settings.host}:{port} (page), /docs, /v1/predict; Ctrl-C stops")

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients' broken forms are answered, not logged
    server = Server(config)
    try:
        with _sigterm_is_no_fault():
            server.run()
    except SystemExit as error:  # uvicorn leaves like this when it cannot listen
        raise UserError(f"--host {settings.host} --port {settings.port}: cannot listen there") from error
    if not server.started:
        raise UserError(f"--host {settings.host} --port {settings.port}: cannot listen there")


@contextmanager
def _sigterm_is_no_fault() -> Iterator[None]:
    """Leave with status 0 after SIGTERM: uvicorn, once stopped, raises the signal again."""
    if threading.current_thread() is not threading.main_thread():
        yield  # then uvicorn takes no signals either
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_packages() -> None:
    for module, package in _NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"serve.py needs {package}: pip install -r requirements-serve.txt") from error
