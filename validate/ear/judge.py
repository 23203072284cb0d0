"""Judges pairs of replies: figures with their intervals, and limits that say what quantization may cost.

Intervals are of a paired bootstrap over questions. A limit is missed where the figure is beyond it and the interval
says that this is no chance: that the candidate is worse than the reference at all, or farther from it than it may be.
Where the interval leaves that open, the figure is undecided: more questions are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from omni.limits import SpeechLimits
from omni.speech_report import SpeechFigure, SpeechPair, SpeechScore

__all__ = ["MISSED", "NOT_JUDGED", "OK", "UNDECIDED", "judge", "worst"]

OK, MISSED, UNDECIDED, NOT_JUDGED = "ok", "missed", "undecided", "not judged: synthetic weights"
_RESAMPLES = 2000
Statistic = Callable[[np.ndarray], np.ndarray]  # from indices [..., replies] to values [...]
Counts = tuple[int, int]  # errors, and words or characters


def judge(pairs: Sequence[SpeechPair], limits: SpeechLimits, *, synthetic: bool) -> list[SpeechFigure]:
    """Return what is known of the candidate beside the reference; what no reply tells of is left out.

    Args:
        pairs: Scores of both replies to each question.
        limits: The limits.
        synthetic: Whether weights are synthetic: nothing is judged then.
    """
    found = [
        _points("speaking", pairs, _speaking, limits.speaking_points),
        _points("hearing", pairs, _hearing, limits.hearing_points),
        *(
            _points(f"speaking, {language}", [pair for pair in pairs if pair.language == language], _speaking, None)
            for language in sorted({pair.language for pair in pairs})
        ),
        _mean("loss of MOS", _known(_mos_lost(pair) for pair in pairs), limits.mos, at_worst=0.0),
        _mean(
            "similarity", _known(pair.similarity for pair in pairs), limits.similarity, limits.similarity, falls=True
        ),
        _mean("duration", _known(_stretch(pair) for pair in pairs), limits.duration, at_worst=limits.duration),
        _faults(pairs, limits.faults),
    ]
    known = [figure for figure in found if figure is not None]
    if synthetic:
        return [replace(figure, verdict=figure.verdict and NOT_JUDGED) for figure in known]
    return known


def worst(pairs: Iterable[SpeechPair], count: int) -> list[SpeechPair]:
    """Return the pairs in which the candidate is worst: those with a fault first, then by errors more than before."""

    def badness(pair: SpeechPair) -> tuple[bool, float, float]:
        rates = [errors / max(1, length) for errors, length in map(_speaking, (pair.reference, pair.candidate))]
        return pair.fault is not None, rates[1] - rates[0], -(pair.similarity or 0.0)

    return sorted(pairs, key=badness, reverse=True)[:count]


def _points(
    name: str, pairs: Sequence[SpeechPair], counts: Callable[[SpeechScore], Counts | None], limit: float | None
) -> SpeechFigure | None:
    """Return by how many percentage points the candidate's rate of errors is above the reference's."""
    both = [(one, other) for one, other in ((counts(p.reference), counts(p.candidate)) for p in pairs) if one and other]
    if not both:
        return None
    wrong, length = np.moveaxis(np.array(both, float), 2, 0)  # [replies, chains] each

    def points(indices: np.ndarray) -> np.ndarray:
        rates = wrong[indices].sum(axis=-2) / np.maximum(1, length[indices].sum(axis=-2))
        return np.asarray(100 * (rates[..., 1] - rates[..., 0]))

    return _figure(name, points, len(both), limit, 0.0)


def _mean(name: str, values: list[float], limit: float, at_worst: float, *, falls: bool = False) -> SpeechFigure | None:
    if not values:
        return None
    column = np.array(values)
    return _figure(name, lambda indices: column[indices].mean(axis=-1), len(values), limit, at_worst, falls=falls)


def _figure(
    name: str, statistic: Statistic, count: int, limit: float | None, at_worst: float, *, falls: bool = False
) -> SpeechFigure:
    """Return a figure with its 95 % interval.

    Args:
        name: Name of the figure.
        statistic: Function from indices of replies to the figure.
        count: Number of replies.
        limit: What it may be; None: it is not judged.
        at_worst: What the interval has to leave out for the limit to be missed.
        falls: Whether less is worse.
    """
    value = float(statistic(np.arange(count)))
    resampled = statistic(np.random.default_rng(0).integers(0, count, (_RESAMPLES, count)))
    low, high = (float(bound) for bound in np.percentile(resampled, [2.5, 97.5]))
    verdict = None
    if limit is not None:
        beyond, certain = (value < limit, high < at_worst) if falls else (value > limit, low > at_worst)
        verdict = (MISSED if certain else UNDECIDED) if beyond else OK
    return SpeechFigure(name=name, value=value, low=low, high=high, replies=count, limit=limit, verdict=verdict)


def _faults(pairs: Sequence[SpeechPair], limit: int) -> SpeechFigure:
    found = sum(pair.fault is not None for pair in pairs)
    verdict = OK if found <= limit else MISSED
    return SpeechFigure("faults", float(found), None, None, len(pairs), float(limit), verdict)


def _speaking(score: SpeechScore) -> Counts:
    return score.speaking_errors, score.speaking_length


def _hearing(score: SpeechScore) -> Counts | None:
    if score.hearing_errors is None or score.hearing_length is None:
        return None
    return score.hearing_errors, score.hearing_length


def _mos_lost(pair: SpeechPair) -> float | None:
    before, after = pair.reference.mos, pair.candidate.mos
    return None if before is None or after is None else before - after


def _stretch(pair: SpeechPair) -> float | None:
    """Return how many times as long, or as short, the candidate's reply is."""
    ratio = pair.duration_ratio
    return None if ratio is None else max(ratio, 1 / ratio)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
