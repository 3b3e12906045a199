"""What the service counts about itself, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class Measures:
    """Requests by route and status, their times, sizes of batches, images that wait, memory and time of the process."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("polyolo_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram("polyolo_request_seconds", "Time to the answer", ("route",), registry=self.registry)
        self.images = Counter("polyolo_images", "Images predicted on", registry=self.registry)
        self.batches = Histogram("polyolo_batch_images", "Images per batch", buckets=_SIZES, registry=self.registry)
        self.waiting = Gauge("polyolo_images_waiting", "Images in the queue", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return everything in Prometheus's format."""
        return generate_latest(self.registry)


class Watch:
    """Count requests to `app`; addresses that lead nowhere are counted as one."""

    def __init__(self, app: Any, measures: Measures) -> None:
        self.app, self.measures = app, measures

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500  # unless an answer begins

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "elsewhere")
            self.measures.requests.labels(route, str(status)).inc()
            self.measures.seconds.labels(route).observe(time.monotonic() - start)
