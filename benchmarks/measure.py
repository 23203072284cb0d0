"""One way to run a graph, and its time beside others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from validate.latency import speedup_interval

__all__ = ["Feeds", "Turns", "Variant", "speed", "speed_of_sum", "take_turns", "time_in_turn"]

Feeds = Mapping[str, np.ndarray]
Turns = tuple[list[float], list[float]]  # seconds of the baseline and of a variant, round by round

_RESAMPLES = 2000


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


def take_turns(baseline: Variant, own: Variant, rounds: int, patience: float, fewest: int) -> Turns:
    """Run two variants in turns, in alternating order, after each has run once.

    Args:
        baseline: one of them.
        own: the other.
        rounds: at most.
        patience: seconds, after which it ends,
        fewest: but not before so many rounds.
    """
    taken = sum(time_in_turn([baseline, own], {}))
    rounds = min(rounds, max(fewest, int(patience / taken)))
    times = [time_in_turn([baseline, own], {}, backwards=index % 2 == 1) for index in range(rounds)]
    return [first for first, _ in times], [second for _, second in times]


def speed(baseline: list[float], own: list[float]) -> dict[str, float]:
    """Return how many times faster a variant is than what it took turns with, with the 95 % interval."""
    median, low, high = speedup_interval(baseline, own)
    return {"speedup": median, "low": low, "high": high, "rounds": len(own)}


def speed_of_sum(parts: Sequence[tuple[float, Turns]]) -> dict[str, float]:
    """Return how many times faster something is that consists of parts timed each on its own, with the 95 % interval.

    Args:
        parts: how often each is run, and the turns that it took. Their rounds are resampled each on its own, too.
    """
    random = np.random.default_rng(0)
    baseline, own = (np.zeros(_RESAMPLES + 1) for _ in range(2))
    for times, turns in parts:
        rounds = len(turns[0])
        picked = np.concatenate([np.arange(rounds)[None], random.integers(0, rounds, (_RESAMPLES, rounds))])
        for total, seconds in zip((baseline, own), turns, strict=True):
            total += times * np.median(np.array(seconds)[picked], axis=-1)
    ratios = baseline / own
    low, high = np.percentile(ratios[1:], [2.5, 97.5])
    return {
        "speedup": float(ratios[0]),
        "low": float(low),
        "high": float(high),
        "rounds": min(len(turns[0]) for _, turns in parts),
    }


def _seconds(variant: Variant, fed: Feeds) -> float:
    start = time.perf_counter()
    variant.run(fed)
    end = time.perf_counter()
    while time.perf_counter() < end + variant.spins:
        pass  # not asleep: the next run would pay for the waking
    return end - start
