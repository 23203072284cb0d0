"""omni.inputs: synthetic hidden states with outliers, recorded ones, and the line between seen and held out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_params
from safetensors.numpy import save_file

from omni.inputs import calibration_batches, describe, held_out
from omni.params import InputParams

WIDTH = 64


def _params(**changes: object) -> InputParams:
    return InputParams.model_validate({**tiny_params()["projection"]["inputs"], **changes})


def _calibration(params: InputParams) -> dict[str, np.ndarray]:
    return dict(calibration_batches(params, WIDTH))


def test_the_same_channels_stand_out_in_calibration_and_held_out_tokens() -> None:
    params = _params(outlier_channels=3, calibration_tokens=200)

    seen = np.abs(np.concatenate([b[0] for b in _calibration(params).values()])).mean(0)
    other = np.abs(held_out(params, WIDTH, 1, 300)[0]).mean(0)

    assert set(np.argsort(seen)[-3:]) == set(np.argsort(other)[-3:])
    assert np.sort(seen)[-3] > 10 * np.median(seen)


def test_synthetic_tokens_are_the_same_each_time_and_other_ones_with_another_seed() -> None:
    np.testing.assert_array_equal(held_out(_params(), WIDTH, 2, 5), held_out(_params(), WIDTH, 2, 5))
    assert describe(_params(), WIDTH) == describe(_params(), WIDTH)
    assert describe(_params(), WIDTH) != describe(_params(seed=99), WIDTH)


def test_held_out_tokens_are_not_among_the_calibration_tokens() -> None:
    params = _params()
    seen = {row.tobytes() for batch in _calibration(params).values() for row in batch[0]}

    assert not any(row.tobytes() in seen for row in held_out(params, WIDTH, 2, 50).reshape(-1, WIDTH))


def test_recorded_files_are_split_and_read_in_both_formats(tmp_path: Path) -> None:
    arrays = {f"{i:02}": np.full((3, WIDTH), i, np.float32) for i in range(6)}
    for name in ("00", "01", "02", "04"):
        np.save(tmp_path / f"{name}.npy", arrays[name])
    save_file({"a": arrays["03"][None], "b": arrays["05"].astype(np.float16)}, tmp_path / "03.safetensors")
    np.save(tmp_path / "05.npy", arrays["05"])
    params = _params(source=str(tmp_path))

    seen = {name: float(batch[0, 0, 0]) for name, batch in _calibration(params).items()}
    judged = held_out(params, WIDTH, 2, 2)

    assert seen == {"00.npy": 0, "01.npy": 1, "02.npy": 2, "03.safetensors/a": 3, "03.safetensors/b": 5, "05.npy": 5}
    assert judged.shape == (2, 2, WIDTH)
    assert set(np.unique(judged)) == {4}


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((3, WIDTH + 1), np.float32), f"[3, {WIDTH + 1}]; [seq, {WIDTH}]"),
        (np.zeros((WIDTH,), np.float32), f"[{WIDTH}]; [seq, {WIDTH}]"),
        (np.zeros((0, WIDTH), np.float32), f"[0, {WIDTH}]"),
        (np.full((3, WIDTH), np.nan, np.float32), "holds NaN"),
        (np.full((3, WIDTH), 1e300), "holds NaN or infinity"),
    ],
)
def test_a_recorded_array_that_does_not_fit_is_named(
    array: np.ndarray, expected: str, tmp_path: Path, message: Callable[..., str]
) -> None:
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array)

    said = message(_calibration, _params(source=str(tmp_path)))

    assert expected in said
    assert "a.npy" in said


def test_a_recorded_file_that_is_no_array_is_named(tmp_path: Path, message: Callable[..., str]) -> None:
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(b"not an array")

    assert "a.npy: cannot be read" in message(_calibration, _params(source=str(tmp_path)))


def test_too_few_recorded_files_are_told(tmp_path: Path, message: Callable[..., str]) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, WIDTH), np.float32))

    assert "1 .npy or .safetensors files; at least 2" in message(_calibration, _params(source=str(tmp_path)))
    assert "no such folder" in message(_calibration, _params(source=str(tmp_path / "nowhere")))
