"""Counts and times of a service, in the text that Prometheus reads. No label has a word of a client."""

from __future__ import annotations

from typing import Any

from utils.errors import UserError

MISSING = "tools.serve needs starlette, uvicorn and prometheus_client: pip install -r requirements-extra.txt"


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        try:
            import prometheus_client as client
        except ImportError:
            raise UserError(MISSING) from None
        self.registry: Any = client.CollectorRegistry()
        self.kind = client.CONTENT_TYPE_LATEST
        self._text = client.generate_latest
        self.requests = client.Counter(
            "lineup_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = client.Histogram(
            "lineup_request_seconds", "Time from a request's first byte to its answer.", ("route",),
            registry=self.registry,
        )  # fmt: skip
        self.images = client.Counter("lineup_images", "Images that were embedded.", registry=self.registry)
        self.batches = client.Histogram(
            "lineup_batch_images", "Images that were embedded together.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )  # fmt: skip
        self.waiting = client.Gauge("lineup_waiting_images", "Images of requests under way.", registry=self.registry)

    def batch(self, images: int) -> None:
        """Counts a batch."""
        self.images.inc(images)
        self.batches.observe(images)

    def text(self) -> bytes:
        """Returns all of them."""
        return self._text(self.registry)
