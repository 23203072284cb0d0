"""A graph whose float32 weights do not fit into memory is timed in pieces, which add up to the graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from omni import segments
from omni.reports import LatencyReport
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.session import open_session, run
from validate import measured as measured_module
from validate import pieces as pieces_module
from validate.__main__ import run_latency
from validate.bare import Kernel
from validate.ceiling import kernels
from validate.measured import MeasuredGraph, built_components
from validate.pieces import pieces

NAMES = ("thinker", "talker")


def graph_of(name: str) -> MeasuredGraph:
    ((measured, _),) = built_components([name])
    (graph,) = measured.graphs.values()
    return graph


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "WHOLE_BYTES", 0)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 50_000)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_multiply_what_the_whole_graph_multiplies(name: str, chain: Path, small: None) -> None:
    graph = graph_of(name)

    found = pieces(graph, [9])

    assert sum(piece.times for piece in found) > len(found) > 2, "layers are alike"
    together: Counter[Kernel] = Counter()
    for piece in found:
        for kernel, count in kernels(piece, 9).items():
            if kernel.operator != "QuantizeLinear":
                together[kernel] += count * piece.times
    whole = Counter({kernel: n for kernel, n in kernels(graph, 9).items() if kernel.operator != "QuantizeLinear"})
    assert together == whole


@pytest.mark.parametrize("kind", [FLOAT, QUANTIZED])
def test_a_piece_computes_what_the_graph_computes_there(kind: str, chain: Path, small: None) -> None:
    graph = graph_of("talker")
    last = pieces(graph, [9])[-1]
    assert {"logits"} <= set(last.cut.writes)
    # The whole quantized graph gave the inputs, so that its own piece alone gives its outputs again.
    session = last.open(kind)
    found = run(session, {port.name: last.feed(9)[port.name] for port in session.get_inputs()})
    expected = run(graph.open(QUANTIZED), graph.feed(9))["logits"]
    tolerance = 1e-5 if kind == QUANTIZED else 0.2
    np.testing.assert_allclose(found["logits"], expected, atol=tolerance * np.abs(expected).max())


def test_latency_opens_no_float32_graph_whole_and_the_gate_judges_it(
    chain: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    def open_and_tell(graph: Path | bytes, **options: object) -> object:
        opened.append(graph)
        return open_session(graph, **options)  # type: ignore[arg-type]

    for module in (measured_module, pieces_module):
        monkeypatch.setattr(module, "open_session", open_and_tell)
    run_latency(["thinker"])

    assert graph_of("thinker").files[FLOAT] not in opened
    (found,) = LatencyReport.read("thinker").graphs.values()
    assert found.pieces > 2
    assert all(entry.whole_ms for entry in found.lengths)
