"""One way to run a graph, and its time beside others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from validate.latency import speedup_interval

__all__ = ["Feeds", "Variant", "speed", "time_in_turn"]

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Variant:
    """One way to run a component.

    Attributes:
        name: as the table shows it.
        run: the graph's inputs by name -> its first output, all float32 but lengths. The output may be overwritten by
            the next run.
        nbytes: on disk; 0 where there is no such thing.
        spins: seconds, at most, for which its threads keep a core busy after a run.
        against: what its speed is a ratio to, if not our float32 graph; its outputs are then nothing to judge.
    """

    name: str
    run: Callable[[Feeds], Any]
    nbytes: int
    spins: float = 0.0
    against: Variant | None = None


def time_in_turn(variants: Sequence[Variant], fed: Feeds, *, backwards: bool = False) -> list[float]:
    """Run each variant once, one right after the other; return seconds, in the order of ``variants``.

    Runs follow each other without rest, because waking from one costs a short run more than it takes, and some runtimes
    more than others. So every run finds others' weights in the caches and its own in memory, as in a model that does
    other things between two runs.
    """
    step = -1 if backwards else 1
    return [_seconds(variant, fed) for variant in variants[::step]][::step]


def speed(baseline: list[float], own: list[float]) -> dict[str, float]:
    """Return how many times faster a variant is than what it took turns with, with the 95 % interval."""
    median, low, high = speedup_interval(baseline, own)
    return {"speedup": median, "low": low, "high": high, "rounds": len(own)}


def _seconds(variant: Variant, fed: Feeds) -> float:
    start = time.perf_counter()
    variant.run(fed)
    end = time.perf_counter()
    while time.perf_counter() < end + variant.spins:
        pass  # not asleep: the next run would pay for the waking
    return end - start
