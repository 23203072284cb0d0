"""Every way to run token2wav beside PyTorch and beside our float32 graphs, in turns.

The unit of the DiT is one evaluation with guidance: an utterance takes 36, which all cost the same. That of the vocoder
is a second of speech. Only two ways are in memory at any time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import numpy as np

from benchmarks.measure import Turns, Variant, speed, speed_of_sum, take_turns
from benchmarks.token2wav.ways import FLOAT32, PYTORCH, Contender, Run
from omni.quiet import quiet
from omni.resources import progress
from qwen_omni_onnx.common.agreement import NEAR_TIE
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import compare as distance

__all__ = ["CONTEXT", "SPOKEN", "Comparison", "compare"]

SPOKEN, CONTEXT = 256, 16  # mel frames that qwen_omni_onnx.token2wav turns into sound at once, and hears on each side
_PATIENCE, _FEWEST = 50.0, 2  # seconds for which two ways take turns, but no fewer rounds
BASELINES = (PYTORCH, FLOAT32)


@dataclass(frozen=True)
class Comparison:
    """What all ways have to do.

    Attributes:
        utterances: by length in seconds.
        mel: [SPOKEN + 2 * CONTEXT, 80].
        frame: seconds of a mel frame.
        evaluations: of the ODE that an utterance takes.
        rounds: for which two ways take turns, at most.
        skipped: by way and length, why it is not run.
    """

    utterances: Mapping[float, Mapping[str, np.ndarray]]
    mel: np.ndarray
    frame: float
    evaluations: int
    rounds: int
    skipped: Mapping[str, Mapping[float, str]]

    def lengths(self, way: str) -> list[float]:
        return [seconds for seconds in self.utterances if seconds not in self.skipped.get(way, {})]


@dataclass(frozen=True)
class Pair:
    """The turns that a baseline and a way took: an evaluation and what is computed once, by length; the vocoder."""

    evaluation: dict[float, Turns]
    once: dict[float, Turns]
    vocoder: Turns

    def seen(self, baseline: int, own: int) -> Pair:
        """Return the same with other roles: 0 is the baseline here, 1 the way."""

        def swap(turns: Turns) -> Turns:
            return turns[baseline], turns[own]

        evaluation, once = (
            {seconds: swap(turns) for seconds, turns in found.items()} for found in (self.evaluation, self.once)
        )
        return Pair(evaluation, once, swap(self.vocoder))


def compare(contest: Comparison, made: Mapping[str, Callable[[], Contender]]) -> list[dict[str, Any]]:
    """Return a row for each way: how close to PyTorch, and how fast. ``made`` makes them, both baselines among them."""
    rows: dict[str, dict[str, Any]] = {name: {"way": name} for name in made}
    pairs: dict[str, dict[str, Pair]] = {name: {} for name in made}
    rounds = [(PYTORCH, name) for name in made if name != PYTORCH]
    rounds += [(FLOAT32, name) for name in made if name not in BASELINES]
    expected: dict[Any, np.ndarray] = {}
    baseline: Contender | None = None
    with progress("ways", len(rounds)) as advance:
        for against, name in rounds:
            if baseline is None or baseline.name != against:
                baseline = None  # gigabytes, which the next one needs
                baseline = _open(made[against])
            if not expected:
                expected = _outputs(baseline, contest)
                rows[against] |= _judged(baseline, contest, expected)
            way = _open(made[name])
            if against == PYTORCH:
                rows[name] |= _judged(way, contest, expected)
            pairs[name][against] = _pair(baseline, way, contest)
            del way
            advance(1)
    of_both = pairs[FLOAT32][PYTORCH]
    pairs[PYTORCH] = {PYTORCH: of_both.seen(0, 0), FLOAT32: of_both.seen(1, 0)}
    pairs[FLOAT32][FLOAT32] = of_both.seen(1, 1)
    return [row | _speeds(pairs[name], contest, contest.lengths(name)) for name, row in rows.items()]


def _open(make: Callable[[], Contender]) -> Contender:
    gc.collect()
    with quiet():
        return make()


def _outputs(way: Contender, contest: Comparison) -> dict[Any, np.ndarray]:
    """Return the velocity of one evaluation by length in seconds, and the vocoder's waveform."""
    found: dict[Any, np.ndarray] = {}
    for seconds in contest.lengths(way.name):
        found[seconds] = np.array(way.evaluation(contest.utterances[seconds])())
    found["vocoder"] = np.array(way.vocoder(contest.mel, 0, len(contest.mel))()).reshape(-1)
    return found


def _judged(way: Contender, contest: Comparison, expected: Mapping[Any, np.ndarray]) -> dict[str, Any]:
    """Return a way's size, and the SQNR of what it gives against PyTorch."""
    found: dict[Any, float] = {}
    for what, given in _outputs(way, contest).items():
        try:
            found[what] = distance(expected[what], given, NEAR_TIE).sqnr_db
        except ValueError as error:
            raise UserError(f"{way.name}: {what}: {error}") from None
    vocoder = found.pop("vocoder")
    sqnr = {"evaluation": {f"{seconds:g}": decibels for seconds, decibels in found.items()}, "vocoder": vocoder}
    return {"mb": way.nbytes / 1e6, "sqnr_db": sqnr, "skipped": _named(contest.skipped.get(way.name, {}))}


def _pair(baseline: Contender, way: Contender, contest: Comparison) -> Pair:
    def turns(run: Callable[[Contender], Run]) -> Turns:
        first, second = (_variant(one, run(one)) for one in (baseline, way))
        return take_turns(first, second, contest.rounds, _PATIENCE, _FEWEST)

    evaluation, once = {}, {}
    for seconds in contest.lengths(way.name):
        fed = contest.utterances[seconds]
        evaluation[seconds] = turns(methodcaller("evaluation", fed))
        once[seconds] = turns(methodcaller("once", fed))
    return Pair(evaluation, once, turns(methodcaller("vocoder", contest.mel, CONTEXT, CONTEXT + SPOKEN)))


def _variant(way: Contender, run: Run) -> Variant:
    return Variant(way.name, lambda _: run(), way.nbytes, way.spins)


def _speeds(pairs: Mapping[str, Pair], contest: Comparison, lengths: list[float]) -> dict[str, Any]:
    """Return times and speeds of a way: of an evaluation, of the vocoder, and of everything together."""
    spoken = SPOKEN * contest.frame
    vocoded = _median(pair.vocoder for pair in pairs.values()) / spoken
    vocoder = {
        "seconds_a_second": vocoded,
        "speed": {against: speed(*pair.vocoder) for against, pair in pairs.items()},
    }
    evaluation, whole = {}, {}
    for seconds in lengths:
        each = _median(pair.evaluation[seconds] for pair in pairs.values())
        once = _median(pair.once[seconds] for pair in pairs.values())
        evaluation[seconds] = {
            "ms": each * 1e3,
            "speed": {against: speed(*pair.evaluation[seconds]) for against, pair in pairs.items()},
        }
        whole[seconds] = {
            "seconds_a_second": (contest.evaluations * each + once) / seconds + vocoded,
            "speed": {
                against: speed_of_sum(
                    [
                        (contest.evaluations / seconds, pair.evaluation[seconds]),
                        (1 / seconds, pair.once[seconds]),
                        (1 / spoken, pair.vocoder),
                    ]
                )
                for against, pair in pairs.items()
            },
        }
    return {"evaluation": _named(evaluation), "vocoder": vocoder, "whole": _named(whole)}


def _median(turns: Iterable[Turns]) -> float:
    """Return the median seconds of a way over all turns that it took."""
    return float(np.median([seconds for _, own in turns for seconds in own]))


def _named(by_length: Mapping[float, Any]) -> dict[str, Any]:
    return {f"{seconds:g}": value for seconds, value in by_length.items()}
