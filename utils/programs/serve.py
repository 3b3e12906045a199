"""From the options of serve.py to a running server."""

from __future__ import annotations

import argparse
import importlib
import os

from utils.core.errors import UserError
from utils.core.log import LOGGER

_NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def serve_models(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run then are finished first."""
    _require_packages()
    import uvicorn

    from utils.backends.opening import find_weights
    from utils.service.app import build_app
    from utils.service.settings import ServiceSettings

    values = {**vars(options), "api_key": options.api_key or os.environ.get("API_KEY", "")}
    values["weights"] = tuple(str(path) for path in find_weights(options.weights, options.download))
    settings = ServiceSettings(**values)
    app = build_app(settings)
    LOGGER.info(f"listening on http://{settings.host}:{settings.port} (page), /docs, /v1/predict; Ctrl-C stops")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=int(settings.timeout) + 1,
        server_header=False,
    )
    server = uvicorn.Server(config)
    try:
        server.run()
    except SystemExit as error:  # uvicorn leaves like this when it cannot listen
        raise UserError(f"--host {settings.host} --port {settings.port}: cannot listen there") from error
    if not server.started:
        raise UserError(f"--host {settings.host} --port {settings.port}: cannot listen there")


def _require_packages() -> None:
    for module, package in _NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"serve.py needs {package}: pip install -r requirements-serve.txt") from error
