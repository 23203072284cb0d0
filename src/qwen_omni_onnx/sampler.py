"""The ODE that turns noise into mel frames, in NumPy: its solvers, its times, and what they cost.

As in transformers (``Qwen2_5OmniToken2WavDiTModel.sample``): times from 0 to 1 with sway sampling (Chen et al. 2024,
F5-TTS, arXiv 2410.06885), each interval solved by the 3/8 rule of Runge and Kutta, 4 evaluations of the velocity. The
faster variants do less of that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["REFERENCE", "Variant", "evaluation_times", "pick_variant", "solve", "variants"]

REFERENCE = "reference"
_SWAY = np.float32(-1)

# (mel, row of the time table, whether to find the guidance or to take the last one) -> velocity
Velocity = Callable[[np.ndarray, int, bool], np.ndarray]


@dataclass(frozen=True)
class Variant:
    """A way to solve the ODE.

    Attributes:
        solver: Solver: ``rk4`` (3/8 rule, 4 evaluations an interval), ``midpoint`` (2) or ``euler`` (1).
        intervals: Number of intervals of time.
        guidance: When the guidance is refreshed: at every ``evaluation``, which doubles its cost, or at the first one
            of each ``interval``.
    """

    solver: str
    intervals: int
    guidance: str

    @property
    def evaluations(self) -> int:
        """Evaluations of the velocity."""
        return self.intervals * len(_STEPS[self.solver])

    @property
    def rows(self) -> int:
        """Rows of the batch that run through the DiT, the unit of cost: an evaluation with guidance takes two."""
        with_guidance = self.evaluations if self.guidance == "evaluation" else self.intervals
        return self.evaluations + with_guidance

    def points(self) -> np.ndarray:
        """Return the ends of the intervals, [intervals + 1] float32 from 0 to 1."""
        points = np.linspace(0, 1, self.intervals + 1, dtype=np.float32)
        half_pi = np.float32(np.pi / 2)
        return points + _SWAY * (np.cos(half_pi * points) - np.float32(1) + points)

    def times(self) -> np.ndarray:
        """Return when the velocity is evaluated, [evaluations] float32."""
        points = self.points()
        fractions = _STEPS[self.solver]
        return np.array(
            [
                end if fraction == 1 else start + (end - start) * np.float32(fraction)
                for start, end in itertools.pairwise(points)
                for fraction in fractions
            ],
            np.float32,
        )

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights of the slopes of an interval, [evaluations, stages] twice, the newest slope last.

        The first leads from the state at the interval's start to where the evaluation is, the second to the interval's
        end, which only its last evaluation does.
        """
        stages, end = _STAGES[self.solver], _END[self.solver]
        count = len(stages)
        at, after = (np.zeros((self.intervals, count, count)) for _ in range(2))
        for number, (row, step) in enumerate(zip(at, np.diff(self.points()), strict=True)):
            for stage, weights in enumerate(stages):
                row[stage, count - stage :] = np.multiply(weights, step)
            after[number, -1] = np.multiply(end, step)
        return at.reshape(-1, count), after.reshape(-1, count)


_STEPS: dict[str, tuple[float, ...]] = {"rk4": (0, 1 / 3, 2 / 3, 1), "midpoint": (0, 1 / 2), "euler": (0,)}
# The rest of the solvers' Butcher tableaus: weights of the slopes so far at each stage, and at the end
_STAGES: dict[str, tuple[tuple[float, ...], ...]] = {
    "rk4": ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
    "midpoint": ((), (1 / 2,)),
    "euler": ((),),
}
_END: dict[str, tuple[float, ...]] = {"rk4": (1 / 8, 3 / 8, 3 / 8, 1 / 8), "midpoint": (0, 1), "euler": (1,)}


def variants(declared: Mapping[str, Mapping[str, Any]]) -> dict[str, Variant]:
    """Return the variants that an artifact declares, by name: the reference before all others, then the slowest first.

    Raises:
        UserError: A variant is not described as this version describes them.
    """
    try:
        found = {name: Variant(**entry) for name, entry in declared.items()}
        for variant in found.values():
            variant.times()
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"sampler.json: a variant is not what this version of the project writes ({error})") from None
    return dict(sorted(found.items(), key=lambda entry: (entry[0] != REFERENCE, -entry[1].rows, entry[0])))


def pick_variant(declared: Mapping[str, Variant], name: str) -> Variant:
    """Return one of the variants by its name.

    Raises:
        UserError: There is none of that name; the message names those that there are.
    """
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
    at, end = variant.weights()
    last = at.shape[1] - 1
    state, slopes = noise, list[np.ndarray]()
    for number, row in enumerate(np.searchsorted(table, variant.times())):
        stage = len(slopes)
        refresh = stage == 0 or variant.guidance == "evaluation"
        slope = velocity(_weighted_step(state, slopes, at[number]), int(row), refresh)
        if not np.isfinite(slope).all():
            raise UserError(
                f"evaluation {number + 1} of {variant.evaluations} gave NaN or infinity; "
                "look at the weights, the speaker and the noise"
            )
        slopes.append(slope)
        if stage == last:
            state, slopes = _weighted_step(state, slopes, end[number]), []
    return state


def _weighted_step(state: np.ndarray, slopes: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the state plus the slopes of this interval so far by the last of the weights, added in order.

    The ODE as one graph (``compose.loop``) adds the same numbers in the same order: where activations are
    rounded to 8 bits, a last bit that differs does not stay one.
    """
    if not slopes:
        return state
    cast = state.dtype.type
    first, *others = (slope * cast(w) for slope, w in zip(slopes, weights[-len(slopes) :], strict=True))
    return state + sum(others, start=first)
