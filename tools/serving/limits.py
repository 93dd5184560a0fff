"""How much a service takes at once, so that its memory is bounded whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True)
class Limits:
    """images: of a request. body: bytes of a request. bodies: bytes of all requests under way. waiting: images of all
    requests under way. body_seconds: that a client may take to send its request. wait: seconds that an image waits for
    others to share its batch. longest: of a list of matches.
    """

    images: int = 64
    body: int = 32 * 2**20
    bodies: int = 256 * 2**20
    waiting: int = 512
    body_seconds: float = 15.0
    wait: float = 0.01
    longest: int = 1000


class Busy(Exception):
    """The limits are used up by other requests. retry: seconds after which to try again."""

    def __init__(self, retry: int = 1):
        super().__init__("too many requests at once")
        self.retry = retry


class Room:
    """A number of something that requests under way share."""

    def __init__(self, most: int):
        self.most, self.taken, self.lock = most, 0, Lock()

    @contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Takes some of it inside the context. Raises ``Busy`` if there is not enough left."""
        with self.lock:
            if self.taken + amount > self.most:
                raise Busy
            self.taken += amount
        try:
            yield
        finally:
            with self.lock:
                self.taken -= amount
