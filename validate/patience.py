"""A busy machine is told apart from a slow graph: what was measured beside other processes is measured again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["QUIET", "Attempt", "Patience"]

QUIET = 0.2  # cores that other processes may keep busy before a latency is in doubt
_NARROW = 0.05  # half the interval of a share, of the share, up to which it can be judged all the same
_PAUSE = 5.0  # seconds


@dataclass(frozen=True)
class Attempt:
    """What one measurement of one length found.

    Attributes:
        entry: For the report; ``share`` with its interval where a graph is quantized.
        busy: Cores that other processes kept busy meanwhile.
    """

    entry: dict[str, Any]
    busy: float

    @property
    def width(self) -> float:
        """Half the interval of the share, of the share; 0 where there is none."""
        entry = self.entry
        return (entry["share_high"] - entry["share_low"]) / 2 / entry["share"] if "share" in entry else 0.0

    @property
    def doubtful(self) -> bool:
        """Whether other processes took so much that the share cannot be judged."""
        return self.busy > QUIET and self.width > _NARROW


@dataclass
class Patience:
    """How long one component may wait for other processes to end, over all its lengths.

    Attributes:
        seconds: What is left of it; waiting and measuring again both count.
        clock: Tells seconds.
        sleep: Waits for seconds.
    """

    seconds: float
    clock: Callable[[], float] = field(default=time.perf_counter)
    sleep: Callable[[float], None] = field(default=time.sleep)

    def narrowest(self, attempt: Callable[[], Attempt]) -> dict[str, Any]:
        """Measure until the result is not in doubt, or the patience is at an end; return the most certain entry.

        With it, how many attempts that took in how many seconds, and how many cores others kept busy through them.
        """
        began = self.clock()
        tried = [attempt()]
        once = self.clock()
        while tried[-1].doubtful and self.seconds - (self.clock() - once) > _PAUSE:
            self.sleep(_PAUSE)
            tried.append(attempt())
        ended = self.clock()
        self.seconds -= ended - once
        return {
            **min(tried, key=lambda one: one.width).entry,
            "attempts": len(tried),
            "seconds": round(ended - began, 1),
            "cores_busy_with_other_processes": round(sum(one.busy for one in tried) / len(tried), 2),
        }
