"""Metrics of the service in Prometheus format."""

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

_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
UNKNOWN_ROUTE = "elsewhere"  # label of all unknown paths, so that clients cannot create labels


class ServiceMetrics:
    """Requests by route and status, response times, batch sizes, queue length, and memory and CPU of the process."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("polyolo_requests", "Number of requests", labels, registry=self.registry)
        self.seconds = Histogram("polyolo_request_seconds", "Response time", ("route",), registry=self.registry)
        self.images = Counter("polyolo_images", "Number of predicted images", registry=self.registry)
        self.batches = Histogram(
            "polyolo_batch_images", "Images per batch", buckets=_BATCH_BUCKETS, registry=self.registry
        )
        self.waiting = Gauge("polyolo_images_waiting", "Images in the queue", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Format all metrics for Prometheus."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """ASGI middleware that counts requests and measures their response times."""

    def __init__(self, app: Any, metrics: ServiceMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500  # the status if no response is started

        async def record_status(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, record_status)
        finally:
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - start)
