"""The benchmark of the decoders runs, and its tables say what the project claims."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_decoder as tiny
from conftest import ROOT, tiny_params, write_params
from fenced import first_columns

from benchmarks.decoder import __main__ as benchmark
from benchmarks.decoder import bench, contenders, genai, rates
from benchmarks.decoder.bench import FLOAT32, INT4, INT4_LARGE, INT8, Bench
from omni.resources import measure_module
from omni.streamed import data_file
from qwen_omni_onnx.common.artifact import read_json
from qwen_omni_onnx.common.metrics import sqnr_db

OURS = [FLOAT32, INT8, INT4, INT4_LARGE]
CONTENDERS = [contenders.PYTORCH, contenders.BFLOAT16, *OURS]
PAST = 8
MB = 2**20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """What the benchmark tells PyTorch is of this process."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny decoders, built in this process, which has the libraries already; the current directory of the test."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "config.json").write_text(json.dumps(tiny.config()))
    write_params(tmp_path, tiny_params())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "CONFIGS", configs)
    monkeypatch.setattr(rates, "BUFFER_BYTES", MB)
    monkeypatch.setattr(bench, "measure_module", build_here)
    monkeypatch.setattr(genai, "installed", lambda: False)


def build_here(module: str, *arguments: str) -> int:
    """Instead of ``omni.resources.measure_module``."""
    if module == "validate.imports":
        return 200 * MB
    assert module == "benchmarks.decoder.bench"
    bench.build(json.loads(arguments[0]))
    return 300 * MB


@pytest.fixture(params=["talker", "thinker"])
def built(request: pytest.FixtureRequest, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A decoder and its graphs; the current directory of the test is their folder."""
    decoder = bench.synthesize(request.param, "full", tmp_path)
    made = Bench(request.param, decoder, tmp_path, threads=1, cores=1, past=PAST)
    bench.build_all(made)
    return made


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("component", ["talker", pytest.param("thinker", marks=pytest.mark.slow)])
def test_every_contender_is_compared_with_pytorch_and_with_our_float32_graph(
    component: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main(component=component, layers="2", past=PAST, rounds=2, json=Path("found.json"))

    found = read_json(tmp_path / "found.json")
    rows = {row["contender"]: row for row in found["contenders"]}
    assert list(rows) == CONTENDERS
    for name, row in rows.items():
        for speed in (row[part]["speed"][against] for part in ("step", "prefill") for against in contenders.BASELINES):
            assert 0 < speed["low"] <= speed["speedup"] <= speed["high"] < math.inf, name
        assert row["mb"] > 0
        assert 0 <= row["top1"] <= 1
    for name in contenders.BASELINES:
        assert rows[name]["step"]["speed"][name]["speedup"] == 1
    assert rows[contenders.PYTORCH]["sqnr_db"] == 300
    assert rows[FLOAT32]["sqnr_db"] > 100
    assert rows[FLOAT32]["top1"] == 1
    assert rows[FLOAT32]["sqnr_db"] > rows[INT8]["sqnr_db"] > rows[INT4]["sqnr_db"] > 3
    assert rows[FLOAT32]["mb"] > rows[INT8]["mb"] > rows[INT4]["mb"]
    assert (found["layers"], found["depth"], found["goals"]) == (2, 3, [])
    measured = found["rates"]
    assert (measured["buffer_bytes"], measured["longer_past"]) == (MB, 10 * PAST)
    for name in (INT8, INT4, INT4_LARGE):
        step = measured["steps"][name]
        # Of two rounds, the interval ends at each one's share: that of their median time lies between, on any machine.
        of_median = step["bytes"] / (step["ms"] / 1e3) / measured["bytes_a_second"]
        assert step["share"]["low"] * (1 - 1e-9) <= of_median <= step["share"]["high"] * (1 + 1e-9)
        for ratio in (step["share"], step["longer"]["times"], step["sampling"]["share"]):
            assert 0 < step["kernels"] < 1
            assert 0 < ratio["low"] <= ratio["ratio"] <= ratio["high"]
    for name in OURS:
        assert found["memory"][name]["above_bytes"] == 100 * MB
    assert not list(Path("models").iterdir())

    printed, warned = capsys.readouterr()
    quantized = [INT8, INT4, INT4_LARGE]
    assert first_columns(printed) == [CONTENDERS, CONTENDERS, CONTENDERS, quantized, quantized, OURS]
    assert f"{component}, 2 layers" in printed
    assert "weights: synthetic" in printed
    assert "onnxruntime-genai: not installed (pip install '.[bench]')" in printed
    assert "OpenVINO" not in printed
    assert "goals: of the Talker at full depth; not judged here" in printed
    assert not warned


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_goals_are_judged_of_the_talker_at_full_depth(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(layers="full", past=1, rounds=1)

    printed = capsys.readouterr().out
    assert f"- {INT4}: a step reads at least 75% of what the machine can: " in printed
    assert f"- {INT4}: sampling takes less than 2% of a step: " in printed


def test_a_goal_is_met_or_missed_by_what_was_found() -> None:
    def judged(share: float, sampling: float, component: str = "talker", layers: int = 24) -> list[bool]:
        def ratio(value: float) -> dict:
            return {"ratio": value, "low": value, "high": value}

        steps = {INT4: {"share": ratio(share), "sampling": {"share": ratio(sampling)}}}
        found = {"component": component, "layers": layers, "depth": 24, "rates": {"steps": steps}}
        return [goal["met"] for goal in benchmark.goals(found)]

    assert judged(share=0.75, sampling=0.019) == [True, True]
    assert judged(share=0.74, sampling=0.02) == [False, False]
    assert judged(share=0.9, sampling=0.001, layers=2) == []
    assert judged(share=0.9, sampling=0.001, component="thinker") == []


@pytest.mark.usefixtures("small")
def test_what_is_not_allowed_is_refused_before_anything_is_built(
    message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--component: 'encoder' is not allowed: give talker or thinker" in message(
        benchmark.main, component="encoder"
    )
    for text in ("", "0", "-1", "half", "built"):
        assert f"--layers: {text!r} is not allowed" in message(benchmark.main, layers=text)
    assert "--past: 410 is not allowed" in message(benchmark.main, past=410)
    assert "give at most 409" in message(benchmark.main, past=410)
    monkeypatch.setattr(bench, "_available", lambda: bench._BESIDE)
    assert "--layers: PyTorch and our graph, both in float32, take 3 GB" in message(benchmark.main)
    assert not Path("models").exists()


def test_fewer_layers_need_less_memory(monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]) -> None:
    monkeypatch.setattr(bench, "_available", lambda: 16 * 10**9)

    bench.require_possible("talker", "full", 200)
    bench.require_possible("thinker", 2, 200)

    assert "take 60 GB, 16 are free; give a smaller number" in message(bench.require_possible, "thinker", "full", 200)


def test_a_step_is_the_same_however_often_it_is_taken(built: Bench) -> None:
    rows = built.rows[: PAST + 1]

    for name, make in contenders.builders(built).items():
        contender = make()
        run, prompt = contender.step(rows), contender.prefill(rows)
        first, again = np.array(run()), np.array(run())
        np.testing.assert_array_equal(first, again)
        decibels = 20 if name == contenders.BFLOAT16 else 90
        expected = contender.teacher_forced(rows)[-1]
        assert expected.shape == (built.size.vocabulary,)
        assert sqnr_db(expected, first[-1]) > decibels, name
        if name not in (INT8, INT4, INT4_LARGE):  # whose kernels for one row and for many differ
            assert sqnr_db(expected, prompt()[-1]) > decibels, name


def test_a_step_reads_all_weights_but_the_tables_and_the_cache(built: Bench) -> None:
    sizes = built.size
    table = sizes.positions * sizes.head_dim // 2 * 4

    for name in OURS:
        data = data_file(built.graph(name)).stat().st_size
        read = rates.step_bytes(built.graph(name), sizes, past=0)
        assert data - 2 * table <= read <= 1.05 * (data - 2 * table)  # small tensors are in the graph's own file
        assert rates.step_bytes(built.graph(name), sizes, past=100) - read == 3 * 2 * 2 * 100 * 16 * 4


def test_head_and_projection_stay_at_8_bits(built: Bench) -> None:
    bits = {
        node.name: node.attributes["bits"].as_int()
        for node in ir.load(built.graph(INT4)).graph
        if node.op_type == "MatMulNBits"
    }

    spared = {name for name, width in bits.items() if width == 8}
    assert set(bits.values()) == {4, 8}
    assert spared == {name for name in bits if "head" in name or "thinker_to_talker" in name}


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_read_all_of_the_buffer(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "BUFFER_BYTES", 4000)
    seen: list[int] = []
    monkeypatch.setattr(np, "max", lambda part: seen.append(part.size))

    reader = rates.Reader(threads)
    reader()

    assert len(seen) == threads
    assert sum(seen) * 4 == reader.nbytes == 4000


def test_the_same_decoder_is_a_qwen2_for_others(built: Bench) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = built.rows[: PAST + 1]
    genai.repackage(built, built.folder / "qwen2")
    qwen2 = AutoModelForCausalLM.from_pretrained(built.folder / "qwen2")
    with torch.inference_mode():
        logits = qwen2(input_ids=torch.arange(len(rows))[None]).logits[0].numpy()

    expected = contenders.builders(built)[contenders.PYTORCH]().teacher_forced(rows)

    assert sqnr_db(expected, logits) > 100


def test_onnxruntime_genai_runs_the_same_decoder(built: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    monkeypatch.setattr(bench, "measure_module", measure_module)
    rows = built.rows[:40]

    took = genai.build(built)
    contender = genai.open_built(built)
    run, said = contender.step(rows), contender.teacher_forced(rows)
    first, again = np.array(run()), np.array(run())

    assert took["peak_bytes"] > took["libraries_bytes"] > 0
    np.testing.assert_array_equal(first, again)
    assert sqnr_db(said[-1], first) > 20
    assert sqnr_db(said[-1], contender.prefill(rows)()) > 20
    expected, ours = (contenders.builders(built)[name]().teacher_forced(rows) for name in (contenders.PYTORCH, INT4))
    assert sqnr_db(expected, said) > sqnr_db(expected, ours) - 2


@pytest.mark.slow
def test_the_benchmark_builds_what_it_needs_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(genai, "installed", lambda: False)
    monkeypatch.setattr(rates, "BUFFER_BYTES", 64 * MB)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)

    benchmark.main(layers="1", past=4, rounds=1, json=Path("found.json"))

    assert first_columns(capsys.readouterr().out)[0] == CONTENDERS
    found = read_json(tmp_path / "found.json")
    rows = {row["contender"]: row for row in found["contenders"]}
    assert rows[FLOAT32]["sqnr_db"] > 100
    assert rows[INT8]["sqnr_db"] > 20
    matrix = 4 * 896 * 18944
    for built in found["memory"].values():
        assert 0 < built["above_bytes"] < 2 * matrix + 256 * MB
    assert not list((tmp_path / "models").iterdir())
