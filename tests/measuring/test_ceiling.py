"""A graph is judged by what this machine's own kernels could make of it, and a busy machine is no slow graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import NAME

from benchmarks.spoiled import RIGHT, SPOILS, judge, spoil
from omni.reports import GraphLatency, LengthLatency
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.session import open_session, sums_saturate
from validate.bare import Kernel, bare_graph
from validate.ceiling import BareKernels, kernels
from validate.gate import latency_verdicts
from validate.latency import compared
from validate.measured import MeasuredGraph, built_components
from validate.patience import Attempt, Patience

LIMIT, CPU = 0.8, "CPUExecutionProvider"


def entry(floating: float, quantized: float, bare: tuple[float, float], **more: Any) -> dict[str, Any]:
    """What is reported of 20 rounds that all took the same seconds."""

    def rounds(seconds: float) -> list[float]:
        return [seconds] * 20

    times = {FLOAT: rounds(floating), QUANTIZED: rounds(quantized)}
    found = compared(times, {FLOAT: rounds(bare[0]), QUANTIZED: rounds(bare[1])})
    quiet = {"cores_busy_with_other_processes": 0.0, "attempts": 1, "seconds": 1.0}
    medians = {"float32_ms": floating * 1e3, "quantized_ms": quantized * 1e3}
    return {"length": 9, "rounds": 20, **medians, **found, **quiet, **more}


def latency_of(*entries: dict[str, Any]) -> GraphLatency:
    return GraphLatency(
        axis="tokens",
        works_at=9,
        files={FLOAT: "graph.onnx", QUANTIZED: "graph_int8.onnx"},
        lengths=[LengthLatency(**found) for found in entries],
        cores_busy_with_other_processes=0.0,
        fit={},
        original_note=None,
        threads=1,
        provider=CPU,
        machine={},
    )


def graph_of(name: str, stem: str | None = None) -> MeasuredGraph:
    ((measured, _),) = built_components([name])
    return measured.graphs[stem] if stem else next(iter(measured.graphs.values()))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


# The arithmetic


def test_the_ceiling_is_the_float_graph_with_its_multiplications_replaced() -> None:
    found = entry(10, 5, bare=(8, 2))

    assert found["ceiling"] == pytest.approx(10 / 4)
    assert found["speedup"] == pytest.approx(2)
    assert [found[key] for key in ("share", "share_low", "share_high")] == pytest.approx([0.8] * 3)


def test_the_ceiling_is_never_faster_than_the_quantized_kernels_alone() -> None:
    assert entry(10, 4, bare=(11, 2))["ceiling"] == pytest.approx(10 / 2)


# Judging


def test_a_right_graph_is_green_where_float32_is_as_fast_and_the_faster_graph_is_named() -> None:
    share, speedup = latency_verdicts("graph", latency_of(entry(0.893, 1.0, bare=(0.8, 0.9))), LIMIT)

    assert share.ok
    assert speedup.ok
    assert "graph.onnx is the faster graph" in str(speedup)


def test_a_right_graph_is_green_on_a_machine_with_kernels_that_nobody_has_seen() -> None:
    for kernel_seconds in (0.01, 0.5, 3.0, 8.0):
        assert all(
            verdict.ok
            for verdict in latency_verdicts(
                "graph", latency_of(entry(10, 2.1 + kernel_seconds, (8, kernel_seconds))), LIMIT
            )
        )


def test_a_graph_that_fell_back_to_a_slow_path_is_red() -> None:
    share, speedup = latency_verdicts("graph", latency_of(entry(10, 9, bare=(8, 2))), LIMIT)

    assert (share.ok, speedup.ok) == (False, True)
    assert (share.metric, speedup.metric) == ("share_9", "speedup_9")
    assert "busy" not in str(share)


def test_a_graph_slower_than_float32_is_red_where_the_kernels_gain() -> None:
    _, speedup = latency_verdicts("graph", latency_of(entry(10, 11, bare=(8, 2))), LIMIT)

    assert (speedup.ok, speedup.limit) == (False, 1)


def test_a_miss_beside_busy_processes_says_so() -> None:
    found = entry(10, 9, (8, 2), cores_busy_with_other_processes=1.5, attempts=4, seconds=71.0)
    share, *_ = latency_verdicts("graph", latency_of(found), LIMIT)

    assert "other processes kept 1.5 cores busy through 4 attempts in 71 s: run it again" in str(share)


# Patience


class _Machine:
    """A clock that only attempts and waiting move, and attempts that find what they are told to."""

    def __init__(self, *found: tuple[float, float]) -> None:
        self.now, self.found = 0.0, list(found)

    def attempt(self) -> Attempt:
        self.now += 10
        width, busy = self.found.pop(0)
        return Attempt({"share": 1.0, "share_low": 1 - width, "share_high": 1 + width}, busy)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds, clock=lambda: self.now, sleep=self.sleep)


@pytest.mark.parametrize("first", [(0.3, 0.0), (0.01, 1.5)], ids=["wide on a quiet machine", "narrow on a busy one"])
def test_what_is_not_in_doubt_is_measured_once(first: tuple[float, float]) -> None:
    machine = _Machine(first)

    assert machine.patience(60).narrowest(machine.attempt).entry["attempts"] == 1


def test_a_busy_machine_is_waited_for_and_the_narrowest_attempt_kept() -> None:
    machine = _Machine((0.3, 1.0), (0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.4, 1.0))
    patience = machine.patience(40)

    found = patience.narrowest(machine.attempt).entry

    assert found["share_high"] == 1.1
    assert (found["attempts"], found["seconds"], found["cores_busy_with_other_processes"]) == (4, 55, 1)
    assert patience.seconds < 0
    machine.found = [(0.3, 1.0)]
    assert patience.narrowest(machine.attempt).entry["attempts"] == 1, "it is one patience for all lengths"


# What is measured


def test_every_matrix_multiplication_of_a_length_is_found(workplace: Path) -> None:
    found = kernels(graph_of(NAME), 4)

    products = {kernel: count for kernel, count in found.items() if kernel.operator == "MatMul"}
    assert [kernel.activation[:2] for kernel in products] == [(1, 4), (1, 4)]
    assert set(products.values()) == {1}
    assert sorted(kernel.operator for kernel in found) == ["MatMul", "MatMul", "QuantizeLinear", "QuantizeLinear"]


def test_multiplications_in_the_body_of_a_loop_count_once_for_each_time_around(chain: Path) -> None:
    alone = kernels(graph_of("token2wav", "dit_step"), 1)
    whole = kernels(graph_of("audio_core"), 1600)

    shapes = {kernel.weight for kernel in alone if kernel.weight}
    inside = [count for kernel, count in whole.items() if kernel.weight in shapes]
    assert max(inside) >= 12
    assert sum(inside) >= 12 * sum(count for kernel, count in alone.items() if kernel.weight)


def test_activations_that_nodes_share_are_quantized_once(chain: Path) -> None:
    found = kernels(graph_of("encoder"), 16)

    quantized = sum(count for kernel, count in found.items() if kernel.operator == "QuantizeLinear")
    multiplied = sum(count for kernel, count in found.items() if kernel.operator == "MatMul")
    assert 0 < quantized < multiplied


@pytest.mark.parametrize(
    ("name", "stem", "length", "expected"),
    [
        ("encoder", None, 16, {"MatMulIntegerToFloat"}),
        ("thinker", None, 9, {"MatMulNBits"}),
        ("token2wav", "bigvgan", 4, {"QLinearConv"}),
    ],
)
def test_bare_graphs_hold_the_fastest_operators_and_run(
    name: str, stem: str | None, length: int, expected: set[str], chain: Path
) -> None:
    needed = kernels(graph_of(name, stem), length)
    found = operators(bare_graph(needed, QUANTIZED)[0])
    multiplied = [kernel for kernel in needed if kernel.operator != "QuantizeLinear"]

    assert expected <= set(found)
    assert sum(found[operator] for operator in expected) == len(multiplied)
    assert sum(operators(bare_graph(needed, FLOAT)[0]).values()) == len(multiplied)
    for kind in (FLOAT, QUANTIZED):
        with BareKernels(needed, kind, 1, CPU) as bare:
            for _ in range(4):
                bare.run()
            assert (bare.seconds(3) > 0).all()


def test_a_spoiled_graph_does_not_lower_its_ceiling(chain: Path, tmp_path: Path) -> None:
    graph = graph_of("encoder")
    right: Counter[Kernel] = kernels(graph, 16)

    for _, file in spoil(graph.files[QUANTIZED], tmp_path):
        spoiled = replace(graph, files={**graph.files, QUANTIZED: file})
        assert kernels(spoiled, 16) == right


# Spoiled graphs: how slow they are, `python -m benchmarks.spoiled` finds out


def test_spoiled_graphs_give_nearly_the_same_results(chain: Path, tmp_path: Path) -> None:
    measured, seen = graph_of("encoder"), set()
    fed = measured.feed(16)
    (expected, *_) = open_session(measured.files[QUANTIZED]).run(None, fed)

    for way, graph in spoil(measured.files[QUANTIZED], tmp_path):
        (result, *_) = open_session(graph).run(None, fed)
        assert np.allclose(result, expected, atol=0.05 * np.abs(expected).max()), way
        seen.add(way)
    absent = {"MatMulNBits at accuracy level 0"} | ({"INT8 activations"} if sums_saturate() else set())
    assert seen == {*SPOILS} - absent


def test_the_benchmark_finds_a_gate_that_errs() -> None:
    right, slow = latency_of(entry(10, 4, (8, 2))), latency_of(entry(10, 9, (8, 2)))

    assert [row.wrong for row in judge({RIGHT: right, "slow": slow}, LIMIT)] == [False, False]
    assert [row.wrong for row in judge({RIGHT: right, "slow": slow}, 0.3)] == [False, True]
    assert [row.wrong for row in judge({RIGHT: right, "as fast": right}, 1.5)] == [True, False]
