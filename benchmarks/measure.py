"""Time variants of a component in turns, and find out on which operators a graph's time goes.

Where a component is more than one run of one graph, contenders take turns with two baselines: only two of them are in
memory at any time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from omni.quiet import quiet
from omni.resources import progress
from qwen_omni_onnx.common.session import node_events, open_session, profile
from validate.latency import speedup_interval

__all__ = [
    "PATIENCE",
    "Contender",
    "Feeds",
    "Run",
    "Timings",
    "Turns",
    "Variant",
    "by_operator",
    "compare",
    "median_seconds",
    "opened",
    "speed",
    "speed_of_sum",
    "take_turns",
    "time_in_turn",
    "time_run",
]

Feeds = Mapping[str, np.ndarray]
Run = Callable[[], Any]
Turns = tuple[list[float], list[float]]  # seconds of the baseline and of a variant, round by round
Timings = Mapping[Any, Turns]  # by what was timed: a step, a prompt, an evaluation at a length

PATIENCE = 50.0  # seconds for which two contenders take turns at one thing
_RESAMPLES = 2000
_PROFILED_RUNS = 3


@dataclass(frozen=True)
class Variant:
    """An implementation of a component that can be timed.

    Attributes:
        name: Name in the tables.
        run: Function from the graph's inputs by name to its first output; all are float32 but lengths. The next run may
            overwrite the output.
        nbytes: Size on disk in bytes; 0 where nothing is on disk.
        spins: Longest time, in seconds, for which its threads keep a core busy after a run.
        against: Variant that its speed is a ratio to, if that is not our float32 graph; its outputs are then not
            judged.
    """

    name: str
    run: Callable[[Feeds], Any]
    nbytes: int
    spins: float = 0.0
    against: Variant | None = None

    @classmethod
    def of_run(cls, name: str, run: Run, nbytes: int = 0, spins: float = 0.0) -> Variant:
        """Return a variant that calls a function without arguments, whatever it is fed."""
        return cls(name, lambda _: run(), nbytes, spins)


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
        baseline: First variant.
        own: Second variant.
        rounds: Largest number of rounds.
        patience: Seconds after which no further round begins.
        fewest: Smallest number of rounds, however long they take.
    """
    taken = sum(time_in_turn([baseline, own], {}))
    rounds = min(rounds, max(fewest, int(patience / taken)))
    times = [time_in_turn([baseline, own], {}, backwards=index % 2 == 1) for index in range(rounds)]
    return [first for first, _ in times], [second for _, second in times]


def speed(baseline: list[float], own: list[float]) -> dict[str, float]:
    """Return how many times faster a variant is than what it took turns with, with the 95 % interval."""
    median, low, high = speedup_interval(baseline, own)
    return {"speedup": median, "low": low, "high": high, "rounds": len(own)}


def speed_of_sum(timed: Sequence[tuple[float, Turns]]) -> dict[str, float]:
    """Return how many times faster a sequence of steps is, each of which was timed alone, with the 95 % interval.

    Args:
        timed: For each step, how often it is run, and the turns that it took. Rounds of different steps are resampled
            independently.
    """
    random = np.random.default_rng(0)
    baseline, own = (np.zeros(_RESAMPLES + 1) for _ in range(2))
    for times, turns in timed:
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
        "rounds": min(len(turns[0]) for _, turns in timed),
    }


def by_operator(graph: Path, threads: int, fed: Feeds, folder: Path) -> dict[str, float]:
    """Return the share of a graph's time that each type of operator takes, the largest first.

    Args:
        graph: ONNX file.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        fed: Inputs by name.
        folder: Folder in which ONNX Runtime writes its profile.
    """
    session = open_session(graph, threads=threads, profiled_to=folder / "profile")
    for _ in range(_PROFILED_RUNS):
        session.run(None, dict(fed))
    micros: dict[str, float] = {}
    for event in node_events(profile(session)):
        kind = event["args"]["op_name"]
        micros[kind] = micros.get(kind, 0.0) + event["dur"]
    total = sum(micros.values())
    return {kind: micros[kind] / total for kind in sorted(micros, key=lambda kind: -micros[kind])}


def _seconds(variant: Variant, fed: Feeds) -> float:
    start = time.perf_counter()
    variant.run(fed)
    end = time.perf_counter()
    while time.perf_counter() < end + variant.spins:
        pass  # not asleep: the next run would pay for the waking
    return end - start


@dataclass(frozen=True)
class Contender:
    """An implementation of a component.

    Attributes:
        name: Name in the tables.
        nbytes: Size of its weights in bytes, on disk or in PyTorch.
        spins: See :class:`benchmarks.measure.Variant`.
    """

    name: str
    nbytes: int
    spins: float = field(default=0.0, kw_only=True)


AnyContender = TypeVar("AnyContender", bound=Contender)


def compare(
    builders: Mapping[str, Callable[[], AnyContender]],
    baselines: tuple[str, str],
    judge: Callable[[AnyContender], Mapping[str, Any]],
    time_both: Callable[[AnyContender, AnyContender], Timings],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Timings]]]:
    """Let every contender take turns with both baselines.

    Args:
        builders: Functions that make the contenders, by name; the baselines are among them.
        baselines: Names of two contenders. The first is judged before all others, which are compared with its outputs.
        judge: Returns what is said of a contender's size and accuracy.
        time_both: Lets a baseline and a contender take turns.

    Returns:
        What was said of each contender, and its turns with each baseline, both by its name.
    """
    first, second = baselines
    rows: dict[str, dict[str, Any]] = {name: {"contender": name} for name in builders}
    timings: dict[str, dict[str, Timings]] = {name: {} for name in builders}
    pairs = [(first, name) for name in builders if name != first]
    pairs += [(second, name) for name in builders if name not in baselines]
    baseline: AnyContender | None = None
    with progress("contenders", len(pairs)) as advance:
        for against, name in pairs:
            if baseline is None or baseline.name != against:
                baseline = None  # gigabytes, which the next one needs
                baseline = opened(builders[against])
                if against == first:
                    rows[first] |= judge(baseline)
            contender = opened(builders[name])
            if against == first:
                rows[name] |= judge(contender)
            timings[name][against] = time_both(baseline, contender)
            del contender
            advance(1)
    of_both = timings[second][first]
    timings[first] = {first: _with_roles(of_both, 0, 0), second: _with_roles(of_both, 1, 0)}
    timings[second][second] = _with_roles(of_both, 1, 1)
    return rows, timings


def opened(build: Callable[[], AnyContender]) -> AnyContender:
    """Make a contender, once what is no longer needed is out of memory."""
    gc.collect()
    with quiet():
        return build()


def time_run(
    baseline: AnyContender, own: AnyContender, prepare: Callable[[AnyContender], Run], rounds: int, fewest: int
) -> Turns:
    """Let two contenders take turns at one thing.

    Args:
        baseline: First contender.
        own: Second contender.
        prepare: Returns what a contender runs.
        rounds: Largest number of rounds; :data:`PATIENCE` may end them earlier.
        fewest: Smallest number of rounds.
    """
    first, second = (Variant.of_run(one.name, prepare(one), one.nbytes, one.spins) for one in (baseline, own))
    return take_turns(first, second, rounds, PATIENCE, fewest)


def median_seconds(turns: Iterable[Turns]) -> float:
    """Return the median time of a contender over all turns that it took with its baselines."""
    return float(np.median([seconds for _, own in turns for seconds in own]))


def _with_roles(timings: Timings, baseline: int, own: int) -> Timings:
    """Return the same turns with other roles: 0 is the baseline here, 1 the contender."""
    return {what: (turns[baseline], turns[own]) for what, turns in timings.items()}
