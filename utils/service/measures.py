"""What the service counts about itself, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class Measures:
    """Requests by route and status, their times, sizes of batches, images that wait."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("polyolo_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram("polyolo_request_seconds", "Time to the answer", ("route",), registry=self.registry)
        self.images = Counter("polyolo_images", "Images predicted on", registry=self.registry)
        self.batches = Histogram("polyolo_batch_images", "Images per batch", buckets=_SIZES, registry=self.registry)
        self.waiting = Gauge("polyolo_images_waiting", "Images in the queue", registry=self.registry)

    async def watch(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        """Count one request; addresses that lead nowhere are counted as one."""
        start = time.monotonic()
        response = await handle(request)
        route = getattr(request.scope.get("route"), "path", "elsewhere")
        self.requests.labels(route, str(response.status_code)).inc()
        self.seconds.labels(route).observe(time.monotonic() - start)
        return response

    def text(self) -> bytes:
        """Return everything in Prometheus's format."""
        return generate_latest(self.registry)
