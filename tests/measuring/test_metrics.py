"""qwen_omni_onnx.common.metrics: the numbers that the gates judge by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_omni_onnx.common.metrics import EXACT_DB, compare, cosine, kl_divergence, sqnr_db, top1


def test_sqnr_of_a_tenth_of_the_amplitude_is_twenty_db() -> None:
    expected = np.full((4, 8), 2.0, np.float32)

    assert sqnr_db(expected, expected * 1.1) == pytest.approx(20, abs=1e-5)


def test_equal_arrays_are_exact_and_finite() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)

    agreement = compare(array, array.copy(), near_tie=0)

    assert agreement.sqnr_db == agreement.worst_row_sqnr_db == EXACT_DB
    assert agreement.cosine == pytest.approx(1)
    assert (agreement.max_abs, agreement.top1) == (0, 1)


def test_kl_divergence_is_that_of_the_softmaxes() -> None:
    expected = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    actual = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32))

    assert kl_divergence(expected, actual) == pytest.approx(0.25 * np.log(2) / 2, rel=1e-5)
    assert kl_divergence(expected, expected) == 0
    assert kl_divergence(expected, expected + 7) == pytest.approx(0, abs=1e-6)  # logits are known up to a constant


def test_compare_names_the_place_of_the_largest_difference() -> None:
    expected = np.zeros((2, 3, 5), np.float32)
    actual = expected.copy()
    actual[1, 2, 3] = 0.5

    agreement = compare(expected, actual, near_tie=0)

    assert agreement.worst == (1, 2, 3)
    assert agreement.max_abs == 0.5


def test_compare_refuses_nan_rather_than_comparing_it() -> None:
    expected = np.ones((2, 4), np.float32)
    actual = expected.copy()
    actual[1, 2] = np.nan

    with pytest.raises(ValueError, match=r"not finite at \[1, 2\]"):
        compare(expected, actual, near_tie=0)


def test_compare_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"shape \[2, 4\], expected \[2, 3\]"):
        compare(np.ones((2, 3)), np.ones((2, 4)), near_tie=0)


def test_top1_counts_a_near_tie_only_within_the_margin() -> None:
    expected = np.array([[1.0, 0.99, -5.0, -5.0]])
    swapped = np.array([[0.99, 1.0, -5.0, -5.0]])

    assert top1(expected, swapped) == 0
    assert top1(expected, swapped, near_tie=0.01) == 1
    assert top1(expected, np.array([[0.0, 0.0, 1.0, 0.0]]), near_tie=0.01) == 0


@given(st.integers(1, 700), st.integers(1, 6), st.floats(1e-4, 1), st.integers(0, 2**32 - 1))
def test_comparing_in_blocks_is_comparing_at_once(rows: int, width: int, noise: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    expected = random.standard_normal((rows, width)).astype(np.float32)
    actual = (expected + noise * random.standard_normal((rows, width))).astype(np.float32)

    agreement = compare(expected, actual, near_tie=0.02)

    assert agreement.sqnr_db == pytest.approx(sqnr_db(expected, actual), abs=1e-6)
    assert agreement.cosine == pytest.approx(cosine(expected, actual), abs=1e-9)
    assert agreement.max_abs == pytest.approx(np.abs(expected.astype(np.float64) - actual).max())
    assert agreement.top1 == pytest.approx(top1(expected, actual))
    assert agreement.top1_near_tie == pytest.approx(top1(expected, actual, 0.02))


def test_two_arrays_without_a_value_agree_if_their_shapes_do() -> None:
    """A clip of one frame gives no embedding; that is right, not 0 / 0."""
    empty = np.zeros((1, 0, 8), np.float32)

    agreement = compare(empty, empty, near_tie=0)

    assert agreement.sqnr_db == EXACT_DB
    assert agreement.max_abs == 0
    with pytest.raises(ValueError, match="shape"):
        compare(empty, np.zeros((1, 1, 8), np.float32), near_tie=0)
