"""The benchmark of token2wav runs, and its tables say what the project claims."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import ROOT, tiny_config
from fenced import first_columns

from benchmarks import measure
from benchmarks.token2wav import __main__ as benchmark
from benchmarks.token2wav import contenders, ours, workers
from components.token2wav import STEP, VOCODER, bigvgan_config, dit_config
from omni.quiet import quiet
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.artifact import read_json
from qwen_omni_onnx.common.session import open_session, run
from validate.measured import built_components

CONTENDERS = [contenders.PYTORCH, contenders.EXPORTED, contenders.FLOAT32, contenders.INT8]
TABLES_OF_CONTENDERS = 5  # an evaluation at both lengths, the vocoder, the whole at both


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed lengths, in a measure that suits tiny widths; what is not installed everywhere is left out."""
    monkeypatch.setattr("benchmarks.frameworks.openvino_installed", lambda: False)
    monkeypatch.setattr(contenders, "openvino_installed", lambda: False)
    monkeypatch.setattr(ours, "LENGTHS", (0.05, 0.1))
    monkeypatch.setattr(ours, "VOCODED", 0.05)
    monkeypatch.setattr(ours, "SHORT", 0.05)
    monkeypatch.setattr(ours, "LONG", 0.1)
    monkeypatch.setattr(ours, "STREAMED", 0.05)
    monkeypatch.setattr(ours, "_SIZE", 64)


@pytest.fixture(scope="module")
def exported(chain_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformers' modules as exported. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    with contextlib.chdir(chain_once), quiet():
        workers.export(folder)
    return folder


@pytest.fixture
def export_here(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    """Take what was exported in this process, which has the libraries already."""

    def export(module: str, worker: str, out: str, *, folder: Path) -> None:
        assert (module, worker) == (workers.__name__, "export")
        shutil.copytree(exported, out, dirs_exist_ok=True)

    monkeypatch.setattr(benchmark, "run_module", export)


@pytest.mark.slow
@pytest.mark.usefixtures("chain", "short", "export_here")
def test_every_contender_is_compared_with_pytorch_and_with_our_float32_graphs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main(layers="built", seconds="0.05,0.1", rounds=2, json=tmp_path / "found.json")

    found = read_json(tmp_path / "found.json")
    rows = {row["contender"]: row for row in found["contenders"]}
    assert list(rows) == CONTENDERS
    for name, row in rows.items():
        assert list(row["evaluation"]) == list(row["whole"]) == ["0.05", "0.1"]
        measured = [row["vocoder"], *row["evaluation"].values(), *row["whole"].values()]
        for speed in (one["speed"][against] for one in measured for against in contenders.BASELINES):
            assert 0 < speed["low"] <= speed["speedup"] <= speed["high"] < math.inf, name
        assert row["mb"] > 0
    for name in (contenders.EXPORTED, contenders.FLOAT32):
        assert min(rows[name]["sqnr_db"]["evaluation"].values()) > 90
        assert rows[name]["sqnr_db"]["vocoder"] > 90
    assert 15 < rows[contenders.INT8]["sqnr_db"]["evaluation"]["0.1"] < 60
    for name in contenders.BASELINES:
        assert rows[name]["whole"]["0.1"]["speed"][name]["speedup"] == 1
    for kind in (FLOAT, QUANTIZED):
        assert list(found["linearity"][kind]["seconds_a_second"]) == ["0.05", "0.1"]
        assert found["memory"][kind]["long_bytes"] > found["memory"][kind]["libraries_bytes"] > 0
        for graph in found["rates"][kind]["graphs"].values():
            assert sum(graph["by_operator"].values()) == pytest.approx(1)
            assert graph["share"] > 0
    assert [stream["variant"] for stream in found["streaming"]] == ["reference", "abm2-8"]
    for stream in found["streaming"]:
        assert stream["sqnr_db"] > 30
        assert 0 < stream["first_sound_seconds"] < stream["real_time_factor"] * stream["seconds"]
    assert not list(Path("models").glob(".*"))

    printed, warned = capsys.readouterr()
    our_own = [contenders.FLOAT32, contenders.INT8]
    assert first_columns(printed) == [*[CONTENDERS] * TABLES_OF_CONTENDERS, our_own, our_own, ["reference", "abm2-8"]]
    assert "3 layers" in printed
    assert "weights: synthetic" in printed
    assert f"{contenders.INT8}, 0.1 s: at least 2.3 times as fast as {contenders.FLOAT32}" in printed
    assert not warned


def test_a_contender_that_would_not_fit_the_memory_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "_available", lambda: 16 * 2**30)

    assert contenders.reason_not_to_run(contenders.EXPORTED, heads=16, frames=500) is None
    for name in (contenders.EXPORTED, contenders.OPENVINO):
        reason = contenders.reason_not_to_run(name, heads=16, frames=3000)
        assert reason == "takes 42 GB for 3000 mel frames, 17 are free"
    for name in (contenders.FLOAT32, contenders.INT8):
        assert contenders.reason_not_to_run(name, heads=16, frames=60_000) is None


def test_a_length_at_which_pytorch_does_not_fit_the_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.setattr(contenders, "_available", lambda: 16 * 2**30)

    contenders.require_memory_for_pytorch(heads=16, frames=3000)

    assert "give a shorter length" in message(contenders.require_memory_for_pytorch, heads=16, frames=12_000)


def test_lengths_that_are_none_are_refused(message: Callable[..., str]) -> None:
    for text in ("", "5,x", "0", "-1", "nan", "inf"):
        assert f"--seconds: {text!r} is not allowed" in message(benchmark.main, seconds=text)


@pytest.mark.usefixtures("chain")
def test_operations_are_counted_as_the_graphs_multiply() -> None:
    ((measured, _),) = built_components(["token2wav"])
    config = tiny_config()
    block, blocks, frames = dit_config(config)["block_size"], 3, 11
    step, vocoder = (measured.graphs[name] for name in (STEP, VOCODER))

    counted = ours.step_operations(dit_config(config), block * blocks - 1)
    assert counted == operations(step.files[FLOAT], step.feed(blocks))

    counted = ours.vocoder_operations(bigvgan_config(config), frames)
    assert counted == operations(vocoder.files[FLOAT], vocoder.feed(frames))


def operations(graph: Path, fed: Mapping[str, np.ndarray]) -> int:
    """Count the additions and multiplications of a graph's matrix products, and of its convolutions but depthwise ones.

    From the shapes that its values have while it runs.
    """
    model = ir.load(graph)
    nodes = list(model.graph)
    constants = {name: value.shape.numpy() for name, value in model.graph.initializers.items()}
    inner = [value for node in nodes for value in node.outputs if not value.is_graph_output()]
    model.graph.outputs.extend(inner)
    session = open_session(
        ir.to_proto(model).SerializeToString(), data_folder=graph.parent, threads=1, optimization="disabled"
    )
    shapes = {name: array.shape for name, array in {**fed, **run(session, fed)}.items()} | constants
    total = 0
    for node in nodes:
        given, made = [shapes[value.name] for value in node.inputs if value is not None], shapes[node.outputs[0].name]
        if node.op_type in ("MatMul", "Gemm"):
            total += 2 * math.prod(made) * given[0][-1]
        elif node.op_type == "Conv" and given[1][1] > 1:
            total += 2 * math.prod(made) * math.prod(given[1][1:])
        elif node.op_type == "ConvTranspose":
            total += 2 * math.prod(given[0]) * math.prod(given[1][1:])
    return total


def test_a_large_product_counts_its_own_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_SIZE", 32)
    monkeypatch.setattr(ours, "_seconds", lambda run: float(run()[0].size))

    for integer in (False, True):
        assert ours.matmul_rate(1, integer=integer) == 2 * 32


def test_the_speed_of_a_sum_weighs_its_parts_by_how_often_they_run() -> None:
    evaluation, vocoder = ([4.0, 4.0, 4.0], [1.0, 1.0, 1.0]), ([2.0, 2.0], [2.0, 2.0])

    found = measure.speed_of_sum([(3, evaluation), (1, vocoder)])

    assert found == {"speedup": 14 / 5, "low": 14 / 5, "high": 14 / 5, "rounds": 2}


def test_the_interval_of_a_sum_holds_what_its_rounds_hold() -> None:
    found = measure.speed_of_sum([(1, ([2.0, 4.0, 3.0], [1.0, 1.0, 1.0]))])

    assert found["low"] == 2 < found["speedup"] == 3 < found["high"] == 4


def test_turns_that_take_long_are_few() -> None:
    runs = []

    def takes(name: str) -> measure.Variant:
        return measure.Variant(name, lambda fed: runs.append(name), 1)

    patient, hasty = (measure.take_turns(takes("a"), takes("b"), 4, patience, 2) for patience in (60, 0))

    assert [len(own) for own in (*patient, *hasty)] == [4, 4, 2, 2]
    assert "".join(runs[:8]) == "ababbaab"  # after one round to warm up, in alternating order


def test_a_goal_is_judged_at_its_length_alone() -> None:
    def row(name: str, **speeds: float) -> dict:
        speed = {against: {"speedup": value, "low": value, "high": value} for against, value in speeds.items()}
        return {"contender": name, "whole": {"5": {"speed": speed}, "7": {"speed": speed}}}

    rows = [
        row(contenders.PYTORCH),
        row(contenders.FLOAT32, **{contenders.PYTORCH: 2.6}),
        row(contenders.INT8, **{contenders.FLOAT32: 2.2}),
    ]

    judged = benchmark.goals(rows)

    assert [(goal["contender"], goal["seconds"], goal["met"]) for goal in judged] == [
        (contenders.FLOAT32, "5", True),
        (contenders.INT8, "5", False),
        (contenders.INT8, "7", False),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_benchmark_builds_what_it_needs_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)

    benchmark.main(layers="1", seconds="0.5", rounds=1, json=Path("found.json"))

    assert first_columns(capsys.readouterr().out)[0] == CONTENDERS
    found = {row["contender"]: row for row in read_json(tmp_path / "found.json")["contenders"]}
    assert found[contenders.FLOAT32]["sqnr_db"]["evaluation"]["0.5"] > 100
    assert found[contenders.INT8]["sqnr_db"]["evaluation"]["0.5"] > 20
    assert not list((tmp_path / "models").iterdir())
