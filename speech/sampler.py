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

from omni.errors import Problem

__all__ = ["REFERENCE", "Variant", "evaluation_times", "solve", "variants"]

REFERENCE = "reference"
_SWAY = np.float32(-1)
_THIRD, _TWO_THIRDS = np.float32(1 / 3), np.float32(2 / 3)

# (mel, row of the time table, whether to find the guidance or to take the last one) -> velocity
Velocity = Callable[[np.ndarray, int, bool], np.ndarray]


@dataclass(frozen=True)
class Variant:
    """A way to solve the ODE.

    Attributes:
        solver: ``rk4`` (3/8 rule, 4 evaluations an interval), ``midpoint`` (2) or ``euler`` (1).
        intervals: of time.
        guidance: refreshed at every ``evaluation``, which doubles its cost, or at the first one of each ``interval``.
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


_STEPS: dict[str, tuple[float, ...]] = {"rk4": (0, 1 / 3, 2 / 3, 1), "midpoint": (0, 1 / 2), "euler": (0,)}


def variants(declared: Mapping[str, Mapping[str, Any]]) -> dict[str, Variant]:
    """Return the variants that an artifact declares, by name.

    Raises:
        Problem: one is not described as this version describes them.
    """
    try:
        found = {name: Variant(**entry) for name, entry in declared.items()}
        for variant in found.values():
            variant.times()
    except (TypeError, KeyError, AttributeError) as error:
        raise Problem(f"sampler.json: a variant is not what this version of the project writes ({error})") from None
    return found


def evaluation_times(declared: Iterable[Variant]) -> np.ndarray:
    """Return all different times at which any of the variants evaluates, [rows] float32, ascending."""
    return np.unique(np.concatenate([variant.times() for variant in declared]))


def solve(velocity: Velocity, noise: np.ndarray, variant: Variant, table: np.ndarray) -> np.ndarray:
    """Return the state at time 1, of the shape of ``noise``, which is the state at time 0.

    Args:
        velocity: evaluates; see ``Velocity``.
        noise: float32.
        variant: the way to solve it.
        table: [rows] float32, the times that the graph's table has a row for.

    Raises:
        Problem: an evaluation gave NaN or infinity; the message names it.
    """
    rows = np.searchsorted(table, variant.times())
    per_interval = len(_STEPS[variant.solver])
    points = variant.points()
    state = noise
    for interval in range(variant.intervals):
        step = points[interval + 1] - points[interval]
        first = interval * per_interval

        def evaluate(number: int, at: np.ndarray, first: int = first) -> np.ndarray:
            refresh = number == 0 or variant.guidance == "evaluation"
            found = velocity(at, int(rows[first + number]), refresh)
            if not np.isfinite(found).all():
                raise Problem(
                    f"evaluation {first + number + 1} of {variant.evaluations} gave NaN or infinity; "
                    "look at the weights, the speaker and the noise"
                )
            return found

        state = state + _STEP[variant.solver](evaluate, state, step)
    return state


def _rk4(evaluate: Callable[[int, np.ndarray], np.ndarray], state: np.ndarray, step: np.float32) -> np.ndarray:
    k1 = evaluate(0, state)
    k2 = evaluate(1, state + step * k1 * _THIRD)
    k3 = evaluate(2, state + step * (k2 - k1 * _THIRD))
    k4 = evaluate(3, state + step * (k1 - k2 + k3))
    return (k1 + 3 * (k2 + k3) + k4) * step / 8


def _midpoint(evaluate: Callable[[int, np.ndarray], np.ndarray], state: np.ndarray, step: np.float32) -> np.ndarray:
    return evaluate(1, state + evaluate(0, state) * (step / 2)) * step


def _euler(evaluate: Callable[[int, np.ndarray], np.ndarray], state: np.ndarray, step: np.float32) -> np.ndarray:
    return evaluate(0, state) * step


_STEP = {"rk4": _rk4, "midpoint": _midpoint, "euler": _euler}
