"""The ODE's solvers in NumPy, beside transformers' own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.sampler import DEFAULT, REFERENCE, Variant, evaluation_times, pick_variant, solve, variants

AS_IN_TRANSFORMERS = Variant("rk4", 9)
ALL = [Variant(solver, intervals) for solver in ("rk4", "abm2") for intervals in (1, 2, 4, 9)]


def _field(state: np.ndarray, time: float) -> np.ndarray:
    """A velocity that depends on state and time, and has no closed form that a solver could hit by chance."""
    return np.sin(3 * state + time) + np.float32(np.cos(5 * time)) * state


def _solve(variant: Variant, noise: np.ndarray, field: Callable = _field) -> np.ndarray:
    table = evaluation_times([variant])
    return solve(lambda state, row: field(state, table[row]), noise, variant, table)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)


def test_the_reference_is_transformers_own_solver_with_its_own_times(noise: np.ndarray) -> None:
    import torch
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import RungeKutta4ODESolver

    points = torch.linspace(0, 1, 10)
    points += -1.0 * (torch.cos(torch.pi / 2 * points) - 1 + points)
    solver = RungeKutta4ODESolver(
        lambda time, state: torch.from_numpy(_field(state.numpy(), time.numpy())), torch.from_numpy(noise)
    )

    expected = solver.integrate(points)[-1].numpy()

    assert np.array_equal(AS_IN_TRANSFORMERS.points(), points.numpy())
    assert sqnr_db(expected, _solve(AS_IN_TRANSFORMERS, noise)) > 120


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("abm2", 2)])
def test_an_error_shrinks_by_the_order_of_the_solver(solver: str, order: int) -> None:
    noise = np.array([[0.3]])  # float64: the errors of the fine grid lie below float32's rounding
    exact = _solve(Variant("rk4", 400), noise)

    coarse, fine = (abs(_solve(Variant(solver, n), noise) - exact).item() for n in (20, 40))

    assert coarse / fine > 2**order * 0.7


@pytest.mark.parametrize("variant", ALL, ids=str)
def test_the_velocity_is_asked_for_as_often_and_when_the_variant_says(variant: Variant, noise: np.ndarray) -> None:
    table = evaluation_times([variant, AS_IN_TRANSFORMERS])
    asked: list[int] = []

    def velocity(state: np.ndarray, row: int) -> np.ndarray:
        asked.append(row)
        return np.zeros_like(state)

    result = solve(velocity, noise, variant, table)

    assert np.array_equal(result, noise)
    assert len(asked) == variant.evaluations
    assert [float(table[row]) for row in asked] == [float(time) for time in variant.times()]
    assert variant.evaluations == variant.intervals * (4 if variant.solver == "rk4" else 1)


def test_a_step_of_the_multistep_solver_takes_one_evaluation_and_is_what_its_rule_says() -> None:
    """By hand on y' = y, three intervals: Euler, then Adams-Bashforth; each state is corrected by the trapezoid."""
    variant, state = Variant("abm2", 3), 1.0
    steps = np.diff(variant.points().astype(np.float64))
    slopes = [state]
    for number, step in enumerate(steps):
        ratio = step / (2 * steps[number - 1]) if number else 0.0
        before = slopes[-2] if number else 0.0
        predicted = state + step * ((1 + ratio) * slopes[-1] - ratio * before)
        if number == len(steps) - 1:
            state = predicted  # nothing is evaluated at time 1
            break
        slopes.append(predicted)
        state += step / 2 * (slopes[-2] + slopes[-1])

    found = _solve(variant, np.array([1.0]), lambda state, time: state)

    assert found.item() == pytest.approx(state, rel=1e-12)
    assert found.item() == pytest.approx(np.e, rel=0.05)


def test_neighbouring_intervals_share_the_time_between_them() -> None:
    assert len(AS_IN_TRANSFORMERS.times()) == 36
    assert len(evaluation_times([AS_IN_TRANSFORMERS])) == 28  # 9 intervals of 3 steps, and the end


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_velocity_that_is_no_number_stops_with_the_number_of_the_evaluation(
    bad: float, noise: np.ndarray, message: Callable[..., str]
) -> None:
    count = 0

    def velocity(state: np.ndarray, row: int) -> np.ndarray:
        nonlocal count
        count += 1
        return np.where(count == 7, np.float32(bad), state)

    said = message(solve, velocity, noise, AS_IN_TRANSFORMERS, evaluation_times([AS_IN_TRANSFORMERS]))

    assert said.startswith("evaluation 7 of 36 gave NaN or infinity")
    assert count == 7


def test_declared_variants_are_read_and_what_is_none_is_refused(message: Callable[..., str]) -> None:
    declared = {REFERENCE: {"solver": "rk4", "intervals": 9}}

    assert variants(declared) == {REFERENCE: AS_IN_TRANSFORMERS}
    for wrong in ({"solver": "rk5", "intervals": 9}, {"solver": "rk4"}, None):
        assert "not what this version" in message(variants, {REFERENCE: wrong})


def test_without_a_name_the_default_solves_where_it_was_exported(message: Callable[..., str]) -> None:
    declared = {REFERENCE: AS_IN_TRANSFORMERS, DEFAULT: Variant("abm2", 12), "other": Variant("abm2", 3)}

    assert pick_variant(declared, None) == declared[DEFAULT]
    assert pick_variant(declared, REFERENCE) == AS_IN_TRANSFORMERS
    del declared[DEFAULT]
    assert pick_variant(declared, None) == AS_IN_TRANSFORMERS
    assert message(pick_variant, declared, "best") == "no variant 'best'; there are: reference, other"


@pytest.mark.parametrize("intervals", [0, -1, 10_001, 3 * 10**7, 10**12, 10**40, 1.5, True, None, "x", [1]])
def test_a_number_of_intervals_that_cannot_be_is_refused(intervals: object, message: Callable[..., str]) -> None:
    assert "a variant is not what this version" in message(variants, {"a": {"solver": "rk4", "intervals": intervals}})
