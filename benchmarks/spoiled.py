"""Check that the latency gate refuses slow graphs: ``python -m benchmarks.spoiled [COMPONENT...]``.

After ``make repro``, each quantized graph gets the faults that a rewriting could make unseen: the results are nearly
the same, but ONNX Runtime takes a slow path. The gate must refuse each graph that is slower for it, and must not refuse
the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx_ir as ir
import typer
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from benchmarks.building import temporary_folder
from benchmarks.report import print_table
from omni.graph_builder import GraphBuilder
from omni.params import GraphParams, load
from omni.quiet import quiet
from omni.reports import GraphLatency, LengthLatency
from omni.resources import machine
from omni.streamed import save_graph
from qwen_omni_onnx.common.agreement import QUANTIZED
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import sums_saturate
from validate.gate import latency_verdicts
from validate.latency import measure
from validate.measured import MeasuredGraph, built_components
from validate.patience import Patience

__all__ = ["SPOILS", "Spoiled", "judge", "spoil"]

RIGHT = "as built"
_SLOWER = 1.5  # from which a spoiled graph must be refused: on some processors one of these paths is as fast
_OPERATORS = ("QuantizeLinear", "QLinearConv")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Spoiled:
    """What was measured of one graph at one length.

    A graph is refused at all lengths if a limit is missed at one.

    Attributes:
        graph: Name of the graph.
        length: Length of its input.
        fault: Name of the fault; ``as built`` for the right graph.
        milliseconds: Median time of a run.
        speedup: How many times as fast as the float32 graph it is.
        ceiling: Largest speed-up that this machine's kernels allow.
        share: Share of the ceiling.
        slower: Its time over that of the right graph.
        refused: Whether the gate refuses it.
    """

    graph: str
    length: int
    fault: str
    milliseconds: float
    speedup: float
    ceiling: float
    share: float
    slower: float
    refused: bool

    @property
    def verdict(self) -> str:
        """Colour of the gate, and ``WRONG`` where it should have another."""
        return ("red" if self.refused else "green") + (" WRONG" if self.wrong else "")

    @property
    def wrong(self) -> bool:
        """Whether the gate refuses the right graph, or takes one that is far slower."""
        return self.refused if self.fault == RIGHT else self.slower >= _SLOWER and not self.refused


def _int8_activations(model: ir.Model) -> bool:
    """Let activations be INT8, where ONNX Runtime's fast kernels take UINT8.

    Where sums saturate, it turns weights to UINT8, and has no kernel for both: such a graph does not even load.
    """
    if sums_saturate():
        return False
    nodes = list(model.graph.all_nodes())
    points = {
        value
        for node in nodes
        for value in node.inputs
        if value is not None and value.const_value is not None and _is_scalar_uint8(value.const_value)
    }
    for value in points:
        point = np.asarray(value.const_value.numpy().astype(np.int16) - 128, np.int8)
        value.const_value = ir.tensor(point, name=value.name)
        value.dtype = ir.DataType.INT8
    for node in nodes:
        for output in node.outputs:
            if node.op_type in _OPERATORS and output.dtype == ir.DataType.UINT8:
                output.dtype = ir.DataType.INT8
    return bool(points)


def _dequantized_weights(model: ir.Model) -> bool:
    """Let every run turn INT8 matrices to float32, as where DequantizeLinear and MatMul were not fused."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "MatMulIntegerToFloat"]
    for node in nodes:
        quantized, matrix, _, columns = node.inputs[:4]
        activation = quantized.producer().inputs[0]
        builder = GraphBuilder(node.graph)
        # Where sums saturate, ONNX Runtime turns these weights to UINT8, too, and fails without a zero point a column.
        zeros = builder.constant(f"{node.name}.zero_points", np.zeros(columns.shape.numpy(), np.int8))
        dequantized = builder.op(
            "DequantizeLinear", [matrix, columns, zeros], f"{node.name}.dequantized", node, attributes={"axis": 1}
        )
        product = builder.op("MatMul", [activation, dequantized], f"{node.name}.float32", node)
        if len(node.inputs) > 6 and node.inputs[6] is not None:
            product = builder.op("Add", [product, node.inputs[6]], f"{node.name}.biased", node)
        builder.replace(node, product)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    return bool(nodes)


def _float32_activations(model: ir.Model) -> bool:
    """Let MatMulNBits turn its weights to float32 in every run, as it does at accuracy level 0."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "MatMulNBits"]
    for node in nodes:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    return bool(nodes)


SPOILS: dict[str, Callable[[ir.Model], bool]] = {
    "INT8 activations": _int8_activations,
    "weights dequantized in every run": _dequantized_weights,
    "MatMulNBits at accuracy level 0": _float32_activations,
}


def spoil(graph: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name of each fault that a quantized graph has operators for, and the spoiled graph's file.

    Args:
        graph: File of the quantized graph.
        folder: Folder of the spoiled graphs.
    """
    for number, (fault, change) in enumerate(SPOILS.items()):
        model = ir.load(graph)
        if change(model):
            with quiet():
                save_graph(model, folder, f"spoiled_{number}")
            yield fault, folder / f"spoiled_{number}.onnx"


def judge(found: dict[str, GraphLatency], limit: float) -> list[Spoiled]:
    """Judge the right graph and the spoiled ones as the gate does.

    Args:
        found: What ``validate latency`` finds, by fault; that of the right graph is under ``RIGHT``.
        limit: Smallest share of the ceiling that the gate takes.
    """
    usual = {entry.length: _ms(entry) for entry in found[RIGHT].lengths}
    rows = []
    for fault, measured in found.items():
        refused = not all(verdict.ok for verdict in latency_verdicts("", measured, limit))
        rows += [
            Spoiled(
                measured.files[QUANTIZED],
                entry.length,
                fault,
                _ms(entry),
                entry.speedup or 0.0,
                entry.ceiling or 0.0,
                entry.share or 0.0,
                _ms(entry) / usual[entry.length],
                refused,
            )
            for entry in measured.lengths
        ]
    return rows


def _ms(entry: LengthLatency) -> float:
    return entry.quantized_ms or 0.0


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[COMPONENT...]", help="Components; all if none is given.")
    ] = None,
) -> None:
    """Spoil quantized graphs and let the gate judge them. Nothing else should run meanwhile."""
    rows: list[Spoiled] = []
    for measured, params in built_components(names or []):
        for stem, graph in measured.graphs.items():
            block = params.graph(stem)
            if QUANTIZED in graph.files and block.limits.latency_share is not None:
                rows += judge(_latencies(graph, block), block.limits.latency_share)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    _print(rows)
    if wrong := [row for row in rows if row.wrong]:
        verb = "refuses" if wrong[0].fault == RIGHT else "takes"
        raise UserError(
            f"the gate {verb} {wrong[0].graph} {wrong[0].fault}, at {wrong[0].length}: {len(wrong)} such rows"
        )


def _latencies(graph: MeasuredGraph, block: GraphParams) -> dict[str, GraphLatency]:
    """Return by fault what ``validate latency`` finds of a graph, at its shortest and longest length."""
    times = block.latency
    times = times.model_copy(
        update={"lengths": sorted({min(times.lengths), times.works_at, max(times.lengths)}), "seconds": 1.0}
    )
    sessions = load().sessions
    latency = partial(
        measure,
        params=times,
        threads=sessions.threads,
        provider="CPUExecutionProvider",
        patience=Patience(sessions.patience_seconds),
    )
    found = {RIGHT: latency(graph)}
    with temporary_folder() as folder:
        for fault, file in spoil(graph.files[QUANTIZED], folder):
            spoiled = latency(replace(graph, files={**graph.files, QUANTIZED: file}))
            found[fault] = replace(spoiled, files=found[RIGHT].files)
            for file in folder.iterdir():
                file.unlink()
    return found


def _print(rows: list[Spoiled]) -> None:
    table = [["graph", "length", "", "ms", "speed-up", "ceiling", "share", "times as long", "gate"]]
    table += [
        [
            row.graph, str(row.length), row.fault, f"{row.milliseconds:.1f}", f"{row.speedup:.2f}",
            f"{row.ceiling:.2f}", f"{row.share:.2f}", f"{row.slower:.2f}", row.verdict,
        ]
        for row in rows
    ]  # fmt: skip
    print_table(table)


def _is_scalar_uint8(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.UINT8 and tensor.size == 1


if __name__ == "__main__":
    run_app(app)
