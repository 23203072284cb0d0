"""Repeats measurements that other processes disturbed, to distinguish a busy machine from a slow graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = ["QUIET", "Attempt", "Patience"]

QUIET = 0.2  # cores that other processes may keep busy before a latency is in doubt
_NARROW = 0.05  # relative half-width of the share's interval up to which a disturbed measurement is still judged
_PAUSE = 5.0  # seconds


@dataclass(frozen=True)
class Attempt:
    """Result of one measurement of one length.

    Attributes:
        entry: Fields of the report; they include ``share`` with its interval if a graph is quantized.
        busy: Number of cores that other processes kept busy.
        seconds: Seconds that each graph and its multiplications alone took, by name and round.
    """

    entry: dict[str, Any]
    busy: float
    seconds: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def width(self) -> float:
        """Half-width of the share's interval relative to the share; 0 if there is no share."""
        entry = self.entry
        return (entry["share_high"] - entry["share_low"]) / 2 / entry["share"] if "share" in entry else 0.0

    @property
    def doubtful(self) -> bool:
        """Whether other processes disturbed the measurement so much that the share cannot be judged."""
        return self.busy > QUIET and self.width > _NARROW


@dataclass
class Patience:
    """Time that one component may spend on repeated measurements, for all lengths together.

    Attributes:
        seconds: Time left in seconds; waiting and measuring both count.
        clock: Returns the time in seconds.
        sleep: Waits for a number of seconds.
    """

    seconds: float
    clock: Callable[[], float] = field(default=time.perf_counter)
    sleep: Callable[[float], None] = field(default=time.sleep)

    def narrowest(self, attempt: Callable[[], Attempt]) -> Attempt:
        """Measure until the result is not doubtful, or no time is left; return the attempt with the narrowest interval.

        Its entry also gets the number of attempts, their duration, and the mean number of cores that others kept busy.
        """
        began = self.clock()
        tried = [attempt()]
        first_ended = self.clock()
        while tried[-1].doubtful and self.seconds - (self.clock() - first_ended) > _PAUSE:
            self.sleep(_PAUSE)
            tried.append(attempt())
        ended = self.clock()
        self.seconds -= ended - first_ended
        best = min(tried, key=lambda attempted: attempted.width)
        entry = {
            **best.entry,
            "attempts": len(tried),
            "seconds": round(ended - began, 1),
            "cores_busy_with_other_processes": round(sum(attempted.busy for attempted in tried) / len(tried), 2),
        }
        return replace(best, entry=entry)
