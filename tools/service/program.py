"""Run the service: check packages, load the models and start the server."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tools.service.allocator import keep_one_heap
from tools.service.service_settings import ServiceSettings
from utils.core.errors import UserError
from utils.core.log import LOGGER

_REQUIRED_PACKAGES = {  # module -> name for pip
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def serve_models(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in progress are completed first.

    Args:
        settings: Options of serve.py; without weights the newest best.pt is served, without API key $API_KEY applies.

    Raises:
        UserError: A package or checkpoint is missing, or the port is not available.
    """
    keep_one_heap()
    _require_packages()
    import uvicorn

    from tools.service.app import build_app
    from tools.service.header_timeout import protocol_with_header_timeout
    from utils.backends.open_weights import find_weights

    weights = tuple(str(path) for path in find_weights(settings.weights, settings.download))
    settings = replace(settings, weights=weights, api_key=settings.api_key or os.environ.get("API_KEY", ""))
    app = build_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=int(settings.timeout) + 1,
        http=protocol_with_header_timeout(settings.timeout),
        ws="none",
        server_header=False,
    )

    class Server(uvicorn.Server):
        async def startup(self, *arguments: Any, **keywords: Any) -> None:
            await super().startup(*arguments, **keywords)
            port = self.servers[0].sockets[0].getsockname()[1]  # with --port 0 the system chooses the port
            address = f"http://{settings.host}:{port}"
            LOGGER.info(f"listening on {address} (page), /docs, /v1/predict; Ctrl-C stops")
            LOGGER.info(f"try it: curl -F image=@photo.jpg {address}/v1/predict")

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # damaged forms are answered with status 400
    server = Server(config)
    unavailable = f"--host {settings.host} --port {settings.port}: cannot listen on this address; choose another port"
    try:
        with _exit_cleanly_on_sigterm():
            server.run()
    except SystemExit as error:  # raised by uvicorn if the port is not available
        raise UserError(unavailable) from error
    if not server.started:
        raise UserError(unavailable)


@contextmanager
def _exit_cleanly_on_sigterm() -> Iterator[None]:
    """Exit with status 0 after SIGTERM, which uvicorn raises again once it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield  # uvicorn handles signals in the main thread only
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_packages() -> None:
    for module, package in _REQUIRED_PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"serve.py needs the package {package}; pip install -r requirements-serve.txt") from error
