"""The ODE that turns noise into mel frames, in NumPy: its solvers, its times, and what they cost.

As in transformers (``Qwen2_5OmniToken2WavDiTModel.sample``): times from 0 to 1 with sway sampling (Chen et al. 2024,
F5-TTS, arXiv 2410.06885), each interval solved by the 3/8 rule of Runge and Kutta, 4 evaluations of the velocity. The
faster variants keep the last two velocities instead: Adams and Bashforth's rule of second order predicts the state, the
trapezoid corrects it, and an interval takes one evaluation (Hairer, Norsett and Wanner, Solving Ordinary Differential
Equations I, III.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "DEFAULT",
    "REFERENCE",
    "Variant",
    "Velocity",
    "default_variant",
    "evaluation_times",
    "pick_variant",
    "solve",
    "variants",
]

REFERENCE, DEFAULT = "reference", "abm2-12"

_MOST_INTERVALS = 10_000  # a thousand times what is of use; each is a row of the time table at least

# (mel, row of the time table) -> velocity
Velocity = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Variant:
    """A way to solve the ODE.

    Attributes:
        solver: Solver: ``rk4`` (3/8 rule, 4 evaluations an interval) or ``abm2`` (predictor and corrector, 1).
        intervals: Number of intervals of time.
    """

    solver: str
    intervals: int

    @property
    def evaluations(self) -> int:
        """Evaluations of the velocity."""
        return self.intervals * len(_FRACTIONS[self.solver])

    def points(self) -> np.ndarray:
        """Return the ends of the intervals, [intervals + 1] float32 from 0 to 1."""
        points = np.linspace(0, 1, self.intervals + 1, dtype=np.float32)
        half_pi = np.float32(np.pi / 2)
        return points + _SWAY[self.solver] * (np.cos(half_pi * points) - np.float32(1) + points)

    def times(self) -> np.ndarray:
        """Return when the velocity is evaluated, [evaluations] float32."""
        points = self.points()
        return np.array(
            [
                end if fraction == 1 else start + (end - start) * np.float32(fraction)
                for start, end in itertools.pairwise(points)
                for fraction in _FRACTIONS[self.solver]
            ],
            np.float32,
        )

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights of the last slopes, [evaluations, slopes] twice, the newest slope last.

        The first leads from the state that was kept to where the evaluation is; the second, when its slope is there,
        to the state that is kept. After the last evaluation, that is the state at time 1.
        """
        points = self.points()
        if self.solver == "rk4":
            return _runge_kutta(np.diff(points))  # in float32, as transformers has them
        return _adams(np.diff(points.astype(np.float64)))


_FRACTIONS: dict[str, tuple[float, ...]] = {"rk4": (0, 1 / 3, 2 / 3, 1), "abm2": (0,)}  # of an interval
# How much the times crowd at the start. abm2 wants smaller last steps than the reference's, which -0.6 leaves it.
_SWAY = {"rk4": np.float32(-1), "abm2": np.float32(-0.6)}
# The rest of the 3/8 rule's Butcher tableau: weights of the slopes so far at each stage, and at the end
_STAGES: tuple[tuple[float, ...], ...] = ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1))
_END = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def _runge_kutta(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the 3/8 rule: within an interval, the state at its start is kept."""
    count = len(_STAGES)
    at, after = (np.zeros((len(steps), count, count)) for _ in range(2))
    for number, step in enumerate(steps):
        for stage, weights in enumerate(_STAGES):
            at[number, stage, count - stage :] = np.multiply(weights, step)
        after[number, -1] = np.multiply(_END, step)
    return at.reshape(-1, count), after.reshape(-1, count)


def _adams(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of predictor and corrector; the first step is Euler's, corrected as the others are."""

    def predicted(number: int) -> np.ndarray:
        """Return the weights of the last two slopes that lead across a step."""
        ratio = steps[number] / (2 * steps[number - 1]) if number else 0.0
        return np.array([-ratio, 1 + ratio]) * steps[number]

    at, after = (np.zeros((len(steps), 2)) for _ in range(2))
    for number in range(1, len(steps)):
        at[number], after[number] = predicted(number - 1), steps[number - 1] / 2
    after[-1] += predicted(len(steps) - 1)
    return at, after


def variants(declared: Mapping[str, Mapping[str, Any]]) -> dict[str, Variant]:
    """Return the variants that an artifact declares, by name: the reference before all others, then the slowest first.

    Raises:
        UserError: A variant is not described as this version describes them.
    """
    try:
        found = {name: Variant(**entry) for name, entry in declared.items()}
        for variant in found.values():
            if type(variant.intervals) is not int or not 0 < variant.intervals <= _MOST_INTERVALS:
                raise TypeError(f"{variant.intervals!r:.40} intervals")
            variant.times()
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"sampler.json: a variant is not what this version of the project writes ({error})") from None
    return dict(sorted(found.items(), key=lambda entry: (entry[0] != REFERENCE, -entry[1].evaluations, entry[0])))


def default_variant(declared: Collection[str]) -> str:
    """Return the name of the variant that is taken where none is asked for."""
    return DEFAULT if DEFAULT in declared else REFERENCE


def pick_variant(declared: Mapping[str, Variant], name: str | None) -> Variant:
    """Return one of the variants by its name; without a name, ``DEFAULT`` if it was exported, else the reference.

    Raises:
        UserError: There is none of that name; the message names those that there are.
    """
    if name is None:
        name = default_variant(declared)
    if name not in declared:
        raise UserError(f"no variant {name!r}; there are: {', '.join(declared)}")
    return declared[name]


def evaluation_times(declared: Iterable[Variant]) -> np.ndarray:
    """Return all different times at which any of the variants evaluates, [rows] float32, ascending."""
    return np.unique(np.concatenate([variant.times() for variant in declared]))


def solve(velocity: Velocity, noise: np.ndarray, variant: Variant, table: np.ndarray) -> np.ndarray:
    """Return the state at time 1, of the shape of ``noise``, which is the state at time 0.

    Args:
        velocity: Function that evaluates the velocity: see ``Velocity``.
        noise: State at time 0, float32.
        variant: Way to solve the ODE.
        table: Times, [rows] float32, that the graph's table has a row for.

    Raises:
        UserError: An evaluation gave NaN or infinity; the message names it.
    """
    at, after = variant.weights()
    state, slopes = noise, list[np.ndarray]()
    for number, row in enumerate(np.searchsorted(table, variant.times())):
        slope = velocity(_weighted_step(state, slopes, at[number]), int(row))
        if not np.isfinite(slope).all():
            raise UserError(
                f"evaluation {number + 1} of {variant.evaluations} gave NaN or infinity; "
                "look at the weights, the speaker and the noise"
            )
        slopes = [*slopes, slope][-at.shape[1] :]
        state = _weighted_step(state, slopes, after[number])
    return state


def _weighted_step(state: np.ndarray, slopes: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the state plus the last slopes by their weights, added in order.

    The ODE as one graph (``compose.loop``) adds the same numbers in the same order: where activations are
    rounded to 8 bits, a last bit that differs does not stay one.
    """
    cast = state.dtype.type
    counted = [(slope, weight) for slope, weight in zip(reversed(slopes), reversed(weights), strict=False) if weight]
    if not counted:
        return state
    first, *others = (slope * cast(weight) for slope, weight in reversed(counted))
    return state + sum(others, start=first)
