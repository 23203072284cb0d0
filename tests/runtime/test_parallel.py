"""One graph, run on several inputs at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from omni.graph_builder import GraphBuilder
from omni.streamed import save_graph
from qwen_omni_onnx.common import cores, parallel
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.cores import usable_cores
from qwen_omni_onnx.common.parallel import ParallelGraph
from qwen_omni_onnx.common.session import run


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that doubles its input."""
    port = Port("x", "FLOAT", ("n",))
    contract = GraphContract((port,), (Port("y", "FLOAT", ("n",)),), 10, "n")
    builder = GraphBuilder.of("double", contract, ir.DataType.FLOAT)
    result = builder.op("Mul", [builder.input("x"), builder.constant("two", np.float32(2))], "y")
    result.shape = ir.Shape(["n"])
    builder.graph.outputs.append(result)
    folder = tmp_path_factory.mktemp("graph")
    save_graph(ir.Model(builder.graph, ir_version=10), folder, "double")
    return folder / "double.onnx"


def _feeds(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.arange(number + 1, dtype=np.float32)} for number in range(count)]


@pytest.mark.parametrize(("threads", "at_once"), [(1, None), (1, 2), (2, 2), (3, 2), (4, None), (5, 3)])
def test_outputs_come_in_the_order_of_inputs(threads: int, at_once: int | None, graph: Path) -> None:
    fed = _feeds(20)

    found = ParallelGraph(graph, threads, at_once).run(fed)

    assert len(found) == len(fed)
    assert all(np.array_equal(one["y"], 2 * inputs["x"]) for one, inputs in zip(found, fed, strict=True))


@pytest.mark.parametrize(
    ("threads", "at_once", "runs", "sessions", "each"),
    [(1, 2, 1, 1, 1), (2, 2, 2, 1, 1), (4, None, 4, 1, 1), (3, 2, 2, 2, 2), (8, 2, 2, 2, 4), (0, None, 6, 1, 1)],
)
def test_threads_are_shared_between_the_runs(
    threads: int, at_once: int | None, runs: int, sessions: int, each: int, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    open_session = parallel.open_session

    def watch(path: Path, **options: Any) -> Any:
        opened.append(options["threads"])
        return open_session(path, **options)

    monkeypatch.setattr(parallel, "open_session", watch)
    monkeypatch.setattr(parallel, "usable_cores", lambda: 6)

    found = ParallelGraph(graph, threads, at_once)

    assert found.at_once == runs
    assert opened == [each] * sessions


def test_runs_go_on_side_by_side(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other: one after the other, neither would end."""
    together = threading.Barrier(2, timeout=60)

    def wait(*arguments: Any) -> Any:
        together.wait()
        return run(*arguments)

    monkeypatch.setattr(parallel, "run", wait)

    assert len(ParallelGraph(graph, 2).run(_feeds(4))) == 4


def test_what_one_run_refuses_is_told(graph: Path, message: Callable[..., str]) -> None:
    several = ParallelGraph(graph, 2)

    assert "ONNX Runtime cannot run the graph" in message(several.run, [*_feeds(2), {"z": np.zeros(1, np.float32)}])
    assert len(several.run(_feeds(3))) == 3


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    monkeypatch.setattr(cores, "_SIBLINGS", f"{tmp_path}/{{}}")
    assert usable_cores() == 4  # nothing says which of them share a core

    for number, siblings in ((0, "0,4"), (1, "1,5"), (2, "2,6"), (5, "1,5")):
        (tmp_path / str(number)).write_text(f"{siblings}\n")
    assert usable_cores() == 3

    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
