"""A decoder whose float32 graph does not fit into memory is judged in segments, and comes out the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import build_here

from omni import segments
from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.artifact import read_json
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.runtimes import DECODERS
from validate import contract, memory, segmented
from validate.__main__ import run_gate, run_memory, run_parity
from validate.measured import built_components

NAMES = ("thinker", "talker")
DECIBELS = ("token_median_db", "token_p95_db", "sqnr_db")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever needs segments gets small ones; the names of float32 graphs that are opened whole all the same."""
    found: list[str] = []

    def open_and_tell(graph: Path | bytes, **options: object) -> object:
        if isinstance(graph, Path) and graph.parts[-3:-1] in {("onnx", name) for name in NAMES}:
            found.append(graph.name)
        return open_session(graph, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(segments, "WHOLE_BYTES", 0)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 50_000)
    monkeypatch.setattr("qwen_omni_onnx.decoder.open_session", open_and_tell)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_check_gives_what_it_gives_of_the_whole_graph(name: str, chain: Path, opened: list[str]) -> None:
    ((measured, _),) = built_components([name])
    runtime, (graph,) = DECODERS[name], measured.graphs.values()
    whole = runtime.open_graphs(measured.files(FLOAT), measured.companions, 1)
    assert opened.pop() == graph.files[FLOAT].name
    assert segmented.needed(measured)
    cases = [ports for _, ports in golden.read(measured.golden)]

    def checks(model: object) -> list[tuple[str, np.ndarray, np.ndarray]]:
        return [found for ports in cases for found in runtime.checks(model, ports)]

    expected, found = checks(whole), segmented.ask(measured, checks)

    assert {check for check, *_ in expected} == {"prompt", "hidden", "steps"}
    assert [check for check, *_ in found] == [check for check, *_ in expected]
    for (check, told, one), (_, again, other) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(told, again, check)
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5, err_msg=check)


@pytest.mark.parametrize("name", NAMES)
def test_parity_opens_no_float32_graph_whole_and_reports_the_same(name: str, chain: Path, opened: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "WHOLE_BYTES", 2**40)
        run_parity([name])
    assert len(opened) == 2  # golden cases, and calibration's recordings beside held-out ones
    opened.clear()
    report = Path("reports") / name / "parity.json"
    expected = read_json(report)

    run_parity([name])

    assert not opened
    found = read_json(report)
    for check, kinds in expected["checks"].items():
        assert found["checks"][check]["quantized"] == kinds["quantized"]
        assert found["checks"][check]["bfloat16"] == kinds["bfloat16"]
        for metric in DECIBELS:  # of rounding errors, which differ; two graphs are both as near to PyTorch
            assert found["checks"][check][FLOAT][metric] == pytest.approx(kinds[FLOAT][metric], abs=6), (check, metric)
    assert found["overfitting"].keys() == expected["overfitting"].keys()


def test_only_decoders_are_asked_in_segments(chain: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "WHOLE_BYTES", 0)
        assert [measured.name for measured, _ in built_components([]) if segmented.needed(measured)] == sorted(NAMES)
    assert not any(segmented.needed(measured) for measured, _ in built_components([]))


def test_a_value_that_no_clip_hands_on_is_not_asked_for(chain: Path) -> None:
    ((measured, _),) = built_components(["thinker"])
    model = segmented.SegmentedModel(segmented.SegmentedDecoder(next(iter(measured.graphs.values())).contract))
    session = model.decoder.begin(2)
    rows = np.random.default_rng(0).standard_normal((2, 3, 96), np.float32)

    zeros = session.prefill(rows, np.array([[1, 1, 1], [1, 1, 0]]))
    session.step(rows[:, 0])

    assert not zeros.logits.any()
    assert session.lengths.tolist() == [4, 3]
    first, second = model.decoder._runs
    assert {name.partition(".")[0] for name in first.keys() - second.keys()} == {"past_key_values"}
    assert second["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize("name", [*NAMES, "encoder"])
def test_contract_and_memory_open_no_large_graph_whole(
    name: str, gated_chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((measured, params),) = built_components([name])
    (graph,) = measured.graphs.values()
    size = graph.files[FLOAT].with_suffix(".onnx.data").stat().st_size
    monkeypatch.setattr(segments, "WHOLE_BYTES", size - 10_000)  # of the quantized graph, there is less
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 50_000)
    monkeypatch.setattr("omni.resources.measure_module", build_here)

    rows = {(row.graph, row.check): row for row in contract.check(measured)}
    sessions = memory.measure(measured, params, 1).graphs[graph.stem]

    assert all(row.ok for row in rows.values())
    assert "in segments" in rows[f"{graph.stem} {FLOAT}", "inference works"].detail
    assert " ms" in rows[f"{graph.stem} {QUANTIZED}", "inference works"].detail
    assert set(sessions) == {QUANTIZED}
    run_memory([name])
    run_gate([name])
    gate = read_json(Path("reports") / name / "gate.json")
    assert gate["verdicts"]
    assert not [entry for entry in gate["verdicts"] if entry["metric"] == "run_mib" and entry["kind"] == FLOAT]
