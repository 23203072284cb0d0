"""omni.params: one line that names the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, tiny_params, write_params

from omni.params import load


def _changed(path: str, value: Any) -> dict:
    params = tiny_params()
    *folders, key = path.split(".")
    table = params
    for folder in folders:
        table = table[folder]
    table[key] = value
    return params


def test_the_repository_s_own_parameters_are_valid() -> None:
    params = load(ROOT / "params.yaml")

    assert params.components == ["projection"]
    assert params.component("projection").quantize.scheme == "int8-token"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("projektion", {}, "projektion: unknown key"),
        ("projection.quantize.sheme", "int8-token", "projection.quantize.sheme: unknown key"),
        (
            "projection.quantize.scheme",
            "int7",
            "projection.quantize.scheme: 'int7' is not allowed: input should be 'int8",
        ),
        ("projection.quantize.block", 33, "projection.quantize.block: 33 is not allowed: input should be 16, 32"),
        (
            "projection.quantize.nodes",
            {"codec_head/MatMul": "int3"},
            "projection.quantize.nodes.codec_head/MatMul: 'int3'",
        ),
        ("projection.calibrate.smoothing", 1.5, "projection.calibrate.smoothing: 1.5 is not allowed"),
        ("projection.calibrate.smoothing", "much", "projection.calibrate.smoothing: 'much' is not allowed"),
        ("projection.cases.seq", [], "projection.cases.seq: [] is not allowed"),
        ("projection.cases.seq", [0], "projection.cases.seq.0: 0 is not allowed: input should be greater than 0"),
        ("projection.inputs.outlier_range", [5, 1], "projection.inputs.outlier_range: [5, 1] is not allowed"),
        (
            "projection.gates.speedup",
            {"avx9": {}},
            "projection.gates.speedup: {'avx9': {}} is not allowed: a table by",
        ),
        ("model.repository", "no slash", "model.repository: 'no slash' is not allowed"),
        ("model.seed", True, "model.seed: True is not allowed"),
        ("components", [], "components: [] is not allowed"),
        ("components", ["projection", "visual"], "components.1: 'visual' is not one of projection"),
        ("sessions", None, "sessions: None is not allowed"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(
    path: str, value: Any, expected: str, tmp_path: Path, message: Callable[..., str]
) -> None:
    write_params(tmp_path, _changed(path, value))

    assert expected in message(load, tmp_path / "params.yaml")


def test_a_missing_key_is_named(tmp_path: Path, message: Callable[..., str]) -> None:
    params = tiny_params()
    del params["projection"]["gates"]["near_tie"]
    write_params(tmp_path, params)

    assert message(load, tmp_path / "params.yaml").endswith("projection.gates.near_tie: missing")


def test_a_component_without_a_block_is_named(tmp_path: Path, message: Callable[..., str]) -> None:
    params = tiny_params()
    del params["projection"]
    write_params(tmp_path, params)

    assert "no block for the component projection" in message(load, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("components: [", "not valid YAML"),
        ("- a\n- b\n", "not a table"),
        ("model: {}\nmodel: {}\n", "duplicate key"),
        ("", "not a table"),
    ],
)
def test_a_file_that_is_no_table_is_told(
    content: str, expected: str, tmp_path: Path, message: Callable[..., str]
) -> None:
    (tmp_path / "params.yaml").write_text(content)

    assert expected in message(load, tmp_path / "params.yaml")


def test_a_missing_file_is_told_with_what_to_do(tmp_path: Path, message: Callable[..., str]) -> None:
    assert "run from the repository's root" in message(load, tmp_path / "params.yaml")
