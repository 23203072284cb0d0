"""How long each part takes, where one part waits for another in the middle of its own work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["Clock"]

T = TypeVar("T")


class Clock:
    """Time of each part, without that of the parts that it waited for.

    Attributes:
        seconds: Seconds so far, by part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._since = time.perf_counter()
        self._running: list[str] = []

    def restart(self) -> None:
        """Count ``elapsed`` from now on."""
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made, or restarted, whoever worked."""
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Let a part's time run; that of the part around it stands meanwhile."""
        self._credit()
        self._running.append(part)
        try:
            yield
        finally:
            self._credit()
            self._running.pop()

    def each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """Yield items; a part's time runs while each of them is made."""
        iterator = iter(items)
        while True:
            with self.running(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def add(self, part: str, seconds: float) -> None:
        """Add what a part took in another thread; parts may then take more together than has elapsed."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def _credit(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.add(self._running[-1], now - self._since)
        self._since = now
