"""The benchmark runs, and its table says what the project claims about accuracy."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import frameworks, projection
from omni.artifact import read_json

ROWS = [
    "ours float32",
    "ours as built",
    "ours int8-token",
    "ours int8-tensor",
    "ours int8-static",
    "ours int8-block",
    "ours int4-block",
    "ORT quantize_dynamic",
    "ORT quantize_static MinMax",
    "ORT quantize_static Percentile",
    "ORT quantize_static Entropy",
    "ORT MatMulNBitsQuantizer 8 bits, block 32",
    "ORT MatMulNBitsQuantizer 4 bits, block 32",
    "PyTorch float32",
    "PyTorch bfloat16",
    "ceiling: bare INT8 kernels over bare float kernels",
]


@pytest.mark.usefixtures("workplace")
def test_every_variant_gets_a_row_of_finite_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frameworks, "openvino_installed", lambda: False)

    projection.main(seq="1,4", rounds=2, json=tmp_path / "found.json")

    found = {row["variant"]: row for row in read_json(tmp_path / "found.json")["variants"]}
    assert sorted(found) == sorted(ROWS)
    for name, row in found.items():
        numbers = [number for speed in row["speed"].values() for number in speed.values()]
        if not name.startswith("ceiling"):
            numbers += [row["mb"], row["sqnr_db"], row["top1"]]
        assert all(math.isfinite(number) for number in numbers), name
        assert list(row["speed"]) == ["1", "4"]
    assert found["ours as built"]["sqnr_db"] > found["ORT quantize_dynamic"]["sqnr_db"]
    assert found["ours float32"]["top1"] == 1

    printed, warned = capsys.readouterr()
    table = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert table[0] == "variant"
    assert table[2:] == ROWS
    assert "weights: synthetic" in printed
    assert "pip install '.[bench]'" in printed
    assert not warned


def test_lengths_that_are_no_numbers_of_tokens_are_refused(message: Callable[..., str]) -> None:
    for text in ("", "1,x", "0"):
        assert f"--seq: {text!r} is not allowed" in message(projection.main, seq=text)


def test_a_benchmark_of_nothing_says_how_to_build(message: Callable[..., str], workplace: Path) -> None:
    shutil.rmtree(workplace / "models")

    assert "dvc repro" in message(projection.main)
