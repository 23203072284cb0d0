"""omni.params: one line that names the key, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, tiny_params, write_params

from omni.limits import GraphLimits
from omni.params import CheckLimits, Limits, load
from omni.patterns import first_match


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

    assert params.components == ["frontend", "encoder", "projection", "thinker", "talker", "token2wav"]
    assert params.component("projection").graph("qwen25_7b_audio").quantize.scheme == "int8-token"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("projektion", {}, "projektion: unknown key"),
        ("token2wav.quantize.dit_step.scheme", "int7", "token2wav.quantize.dit_step.scheme: 'int7' is not allowed"),
        ("token2wav.latency.bigvgan.rounds", 3, "token2wav.latency.bigvgan.rounds: 3 is not allowed"),
        ("token2wav.memory.bigvgan", 0, "token2wav.memory.bigvgan: 0 is not allowed"),
        ("token2wav.gates.checks.mel.float_sqnr_db", "much", "gates.checks.mel.float_sqnr_db: 'much' is not allowed"),
        ("token2wav.gates.graphs.bigvgan.latency_share", 0, "gates.graphs.bigvgan.latency_share: 0 is not allowed"),
        ("token2wav.gates.checks", {}, "token2wav.gates.checks: Dictionary should have at least 1 item"),
        ("token2wav.gates.graphs", {}, "token2wav.gates.graphs: Dictionary should have at least 1 item"),
        ("encoder.latency", {"lengths": [1, 2]}, "encoder.latency.lengths: [1, 2] is not allowed"),
        ("token2wav.inputs.synthetic.clips", 1, "token2wav.inputs.synthetic.clips: 1 is not allowed"),
        ("token2wav.calibrate", {"bigvgan": {"smoothing": 0.0, "headroom": 1.0, "nodes": {}}}, "name the same graphs"),
        ("token2wav.export.variants.reference.solver", "abm2", "one must be named reference, with solver rk4"),
        ("token2wav.export.variants.slow", {"solver": "rk9"}, "token2wav.export.variants.slow.solver: 'rk9'"),
        ("model.speakers_sha256", "abc", "model.speakers_sha256: 'abc' is not allowed"),
        ("projection.quantize.*_audio.sheme", "int8-token", "projection.quantize.*_audio.sheme: unknown key"),
        (
            "projection.quantize.*_audio.scheme",
            "int7",
            "projection.quantize.*_audio.scheme: 'int7' is not allowed: input should be 'int8",
        ),
        (
            "projection.quantize.*_audio.block",
            33,
            "projection.quantize.*_audio.block: 33 is not allowed: input should be 16, 32",
        ),
        (
            "projection.quantize.*_audio.nodes",
            {"codec_head/MatMul": "int3"},
            "projection.quantize.*_audio.nodes.codec_head/MatMul: 'int3'",
        ),
        ("projection.calibrate.*_audio.smoothing", 1.5, "projection.calibrate.*_audio.smoothing: 1.5 is not allowed"),
        ("projection.calibrate.*_audio.smoothing", "much", "calibrate.*_audio.smoothing: 'much' is not allowed"),
        ("projection.cases", [], "projection.cases: [] is not allowed"),
        ("projection.cases", [[1], []], "projection.cases.1: [] is not allowed"),
        ("projection.cases", [[0]], "projection.cases.0.0: 0 is not allowed: input should be greater than 0"),
        ("projection.cases", [7], "projection.cases.0: 7 is not allowed"),
        ("projection.latency.*_audio.lengths", [1], "projection.latency.*_audio.lengths: [1] is not allowed"),
        ("projection.latency.*_audio.lengths", [1, 0], "projection.latency.*_audio.lengths.1: 0 is not allowed"),
        (
            "projection.latency.*_audio.works_at",
            7,
            "projection.latency.*_audio: works_at is 7, which lengths does not hold",
        ),
        ("projection.latency.*_audio.rounds", 3, "projection.latency.*_audio.rounds: 3 is not allowed"),
        ("projection.memory.*_audio", 0, "projection.memory.*_audio: 0 is not allowed"),
        (
            "projection.inputs.synthetic.outlier_range",
            [5, 1],
            "projection.inputs.synthetic.outlier_range: [5, 1] is not allowed: two positive numbers, the smaller",
        ),
        ("projection.inputs.synthetic.outlier_range", [0, 1], "outlier_range: [0, 1] is not allowed"),
        ("projection.inputs.synthetic.outlier_range", ["a", 1], "outlier_range: ['a', 1] is not allowed: a list of"),
        ("projection.inputs.synthetic.tokens", 0, "projection.inputs.synthetic.tokens: 0 is not allowed"),
        ("projection.inputs.source", "", "projection.inputs.source: '' is not allowed"),
        ("projection.inputs.synthetic", None, "projection.inputs: source: synthetic needs a block named synthetic"),
        ("encoder.inputs.source", "synthetic", "encoder.inputs: source: synthetic needs a block named synthetic"),
        ("encoder.quantize", None, "encoder.quantize: None is not allowed"),
        ("encoder.quantize", {}, "encoder: calibrate and quantize: name the same graphs"),
        ("encoder.calibrate", {}, "encoder: calibrate and quantize: name the same graphs"),
        (
            "frontend.quantize",
            {"log_mel": {"scheme": "int8-token", "block": 32, "nodes": {}}},
            "frontend: calibrate and quantize",
        ),
        (
            "encoder.gates.checks.audio_features.below_bfloat16_median_db",
            None,
            "encoder: one of gates.checks must have",
        ),
        ("encoder.gates.quantized_share", None, "encoder: gates.quantized_share must be given"),
        (
            "encoder.gates.graphs.audio_encoder.latency_share",
            None,
            "encoder: gates.graphs.audio_encoder.latency_share must be given: this component is quantized",
        ),
        (
            "encoder.gates.checks.audio_features.float_sqnr_db",
            None,
            "encoder.gates: checks: one must have float_sqnr_db",
        ),
        ("frontend.gates.checks.input_features.float_max_abs", 0, "input_features.float_max_abs: 0 is not allowed"),
        ("frontend.gates.near_tie", 0.1, "frontend.gates.near_tie: unknown key"),
        ("frontend.gates.checks.input_features.near_tie", 0.1, "checks.input_features.near_tie: unknown key"),
        ("projection.gates.speedup", {"other": {50: 1.0}}, "projection.gates.speedup: unknown key"),
        ("encoder.gates.graphs.audio_encoder.latency_share", 0, "audio_encoder.latency_share: 0 is not allowed"),
        ("model.repository", "no slash", "model.repository: 'no slash' is not allowed"),
        ("model.seed", True, "model.seed: True is not allowed"),
        ("model.layers", 0, "model.layers"),
        ("model.layers", "all", "model.layers"),
        ("sessions.threads", -1, "sessions.threads: -1 is not allowed"),
        ("sessions.patience_seconds", -1, "sessions.patience_seconds: -1 is not allowed"),
        ("sessions.threads", 30_000, "sessions.threads: 30000 is not allowed"),
        ("components", [], "components: [] is not allowed"),
        ("components", ["projection", "visual"], "components.1: 'visual' is not one of encoder, frontend, projection"),
        (
            "components",
            ["encoder", "frontend"],
            "components.0: encoder is fed by frontend: frontend must stand before it",
        ),
        ("encoder.inputs.source", "encoder", "components.1: encoder is fed by encoder: encoder must stand before it"),
        ("sessions", None, "sessions: None is not allowed"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(
    path: str, value: Any, expected: str, tmp_path: Path, message: Callable[..., str]
) -> None:
    write_params(tmp_path, _changed(path, value))

    assert expected in message(load, tmp_path / "params.yaml")


LIMITS = [
    *(f"checks.prompt.{limit}" for limit in sorted(CheckLimits.model_fields)),
    *(f"graphs.talker.{limit}" for limit in sorted(GraphLimits.model_fields)),
    *sorted(set(Limits.model_fields) - {"checks", "graphs"}),
]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_is_no_number_is_told_in_one_line(limit: str, tmp_path: Path, message: Callable[..., str]) -> None:
    for wrong in ("a lot", True, [1], {"prompt": 1.0}):
        write_params(tmp_path, _changed(f"talker.gates.{limit}", wrong))

        assert f"talker.gates.{limit}: " in message(load, tmp_path / "params.yaml"), wrong


def test_tables_by_graph_take_the_first_pattern_that_matches() -> None:
    table = {"dit_step": 1, "dit_*": 2, "*": 3}

    assert [first_match(table, stem) for stem in ("dit_step", "dit_condition", "bigvgan")] == [1, 2, 3]
    assert first_match({"*_audio": 1}, "bigvgan") is None


def test_what_is_not_said_of_a_graph_is_told(tmp_path: Path, message: Callable[..., str]) -> None:
    write_params(tmp_path, _changed("token2wav.memory", {"dit_*": 4}))
    block = load(tmp_path / "params.yaml").component("token2wav")

    assert block.graph("dit_step").memory == 4
    assert message(block.graph, "bigvgan") == "params.yaml: memory says nothing of bigvgan; add it"


@pytest.mark.parametrize("table", ["calibrate", "quantize", "latency", "memory"])
def test_a_graph_that_there_is_not_is_told(table: str, tmp_path: Path, message: Callable[..., str]) -> None:
    params = tiny_params()
    for key in ("calibrate", "quantize") if table in ("calibrate", "quantize") else (table,):
        params["encoder"][key]["audio_encodr"] = params["encoder"][key]["audio_encoder"]
    params["encoder"]["gates"]["graphs"]["*"] = {"latency_share": 0.8}
    write_params(tmp_path, params)
    block = load(tmp_path / "params.yaml").component("encoder")

    said = message(block.require_graphs, "encoder", ["audio_encoder"])
    assert re.fullmatch(r"params\.yaml: encoder\.\w+\.audio_encodr: no such graph; there are: audio_encoder", said), (
        said
    )


def test_limits_that_judge_nothing_are_named() -> None:
    limits = load(ROOT / "params.yaml").component("token2wav").gates

    assert limits.idle(["evaluation", "mel", "vocoder"], ["dit_condition", "dit_step"]) == [
        "checks.waveform", "graphs.bigvgan",
    ]  # fmt: skip


@pytest.mark.parametrize("layers", [1, 32, "full"])
def test_layers_are_a_number_or_all(layers: int | str, tmp_path: Path) -> None:
    write_params(tmp_path, _changed("model.layers", layers))

    assert load(tmp_path / "params.yaml").model.layers == layers


def test_a_component_that_is_not_quantized_needs_no_limits_of_a_quantized_graph(tmp_path: Path) -> None:
    params = _changed("encoder.calibrate", {})
    params["encoder"]["quantize"] = {}
    gates = params["encoder"]["gates"]
    gates["checks"]["audio_features"] = {"float_sqnr_db": 90}
    gates["graphs"]["audio_encoder"] = {}
    del gates["quantized_share"]
    write_params(tmp_path, params)

    block = load(tmp_path / "params.yaml").component("encoder")

    assert block.graph("audio_encoder").quantize is None
    assert block.gates.graph("audio_encoder").latency_share is None


def test_a_missing_key_is_named(tmp_path: Path, message: Callable[..., str]) -> None:
    params = tiny_params()
    del params["projection"]["gates"]["build_memory_mb"]
    write_params(tmp_path, params)

    assert message(load, tmp_path / "params.yaml").endswith("projection.gates.build_memory_mb: missing")


def test_a_component_without_a_block_is_named(tmp_path: Path, message: Callable[..., str]) -> None:
    params = tiny_params()
    del params["encoder"]
    params["components"] = ["frontend", "encoder"]
    write_params(tmp_path, params)

    assert "no block for the component encoder" in message(load, tmp_path / "params.yaml")


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
