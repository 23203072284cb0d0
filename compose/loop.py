"""The whole ODE as one graph, for packaging: ``python -m compose.loop STEP.onnx OUT_FOLDER --variant NAME``.

A Loop runs the step once for each evaluation; the solver's weights are constant tables. It takes as long as a loop in
Python. The step may be the float32 or the INT8 graph; ``sampler.json`` must be beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import onnx_ir as ir
import typer
from onnx_ir.passes.common import RemoveUnusedNodesPass

from components.token2wav import STEP
from omni.graph_builder import GraphBuilder
from omni.stored import load_graph
from omni.streamed import data_file, save_graph
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import DEFAULT, Variant, variants
from qwen_omni_onnx.token2wav.runtime import SETTINGS
from qwen_omni_onnx.token2wav.velocity import UNSEEN

__all__ = ["ode_loop_graph"]

KIND = "ode"  # kind of the artifact
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def ode_loop_graph(step_graph: Path, variant: Variant, table: np.ndarray) -> ir.Model:
    """Return the graph that maps noise [batch, blocks, 24, 80], condition and key_bias to mel, which has noise's shape.

    The Loop's body contains the step's nodes once; its weights stay in their file until
    :func:`omni.streamed.save_graph` writes the graph.

    Args:
        step_graph: ``dit_step``, float32 or INT8.
        variant: The sampler variant.
        table: Times that the step has a row for, [rows] float32.

    Raises:
        UserError: The step has no row for a time of the variant.
    """
    rows = _rows(variant, table)
    model = load_graph(step_graph)
    step = model.graph
    velocity = step.outputs[0]
    step.outputs[:] = [velocity]
    RemoveUnusedNodesPass()(model)  # those that give out what another part would look back on
    weights, nodes, ports = list(step.initializers.values()), list(step), list(step.inputs)
    step.remove(nodes)
    for collection in (step.initializers, step.inputs, step.outputs):
        collection.clear()
    whole = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports=step.opset_imports, name="dit_ode"))
    body = _Body(whole, ports, variant, rows)
    body.evaluate(nodes, velocity, weights)
    mel, condition, key_bias, _, past, past_bias, _ = ports
    _begin(whole, condition, key_bias, past, past_bias)
    noise = _like("noise", mel)
    _, slopes = body.carried
    zero = whole.constant(f"{slopes.name}.zero", np.zeros([slopes.shape[0], 1, 1, 1, 1], np.float32))
    start = whole.op("Mul", [noise, zero], f"{zero.name}s", node_name=zero.name)
    count = whole.constant("ode.evaluations", np.array(variant.evaluations))
    results = [_like("mel", mel), _like(f"{slopes.name}.last", slopes)]
    inputs = [count, None, noise, start]
    whole.ops("Loop", inputs, "ode.Loop", attributes={"body": body.graph()}, outputs=results)
    whole.graph.inputs.extend([noise, condition, key_bias])
    whole.graph.outputs.extend(results[:1])
    return ir.Model(whole.graph, ir_version=model.ir_version, producer_name=model.producer_name)


def _begin(whole: GraphBuilder, condition: ir.Value, key_bias: ir.Value, past: ir.Value, past_bias: ir.Value) -> None:
    """Let the utterance begin with its first block: no keys and values are before it."""
    for value, filled, like, axes in ((past, 0.0, condition, 2), (past_bias, UNSEEN, key_bias, 1)):
        assert value.shape is not None
        name = f"ode.{value.name}"
        outer = whole.op("Shape", [like], f"{name}.outer", attributes={"end": axes})
        inner = whole.constant(f"{name}.inner", np.array(value.shape[axes:], np.int64))
        shape = whole.op("Concat", [outer, inner], f"{name}.shape", attributes={"axis": 0})
        one = whole.constant(f"{name}.value", np.array(filled, np.float32))
        value.replace_all_uses_with(whole.op("Expand", [one, shape], name))


class _Body:
    """The body of the Loop, which carries the state and the last slopes.

    Attributes:
        carried: The loop-carried values.
    """

    def __init__(self, whole: GraphBuilder, ports: list[ir.Value], variant: Variant, rows: np.ndarray) -> None:
        self._mel, _, _, self._row, *_ = ports
        self._whole = whole.graph
        self._number = _value("ode.number", ir.DataType.INT64, [])
        self._go_on = _value("ode.go_on", ir.DataType.BOOL, [])
        self._state = _like("ode.state", self._mel)
        at, after = _weights(variant)
        self._slopes = _value("ode.slopes", ir.DataType.FLOAT, [at.shape[1], *self._mel.shape])
        self.carried = [self._state, self._slopes]
        inputs = [self._number, self._go_on, *self.carried]
        self._builder = GraphBuilder(ir.Graph(inputs, [], nodes=[], name="evaluation"))
        tables = {"at": at, "after": after, "rows": rows}
        self._tables = {name: whole.constant(f"ode.{name}", table) for name, table in tables.items()}
        self._axis = whole.constant("ode.axis", np.array([0]))
        self._next = whole.constant("ode.next", np.array([1]))
        self._last = whole.constant("ode.last", np.array([np.iinfo(np.int64).max]))

    def evaluate(self, nodes: list[ir.Node], velocity: ir.Value, weights: list[ir.Value]) -> None:
        """Add the nodes that prepare the step's inputs, the step's nodes, and those that take its output further.

        INT8 weights are the body's own: where sums of their products saturate, ONNX Runtime turns those to UINT8 that
        are in the same graph as the product.
        """
        for weight in weights:
            owner = self._builder.graph if weight.dtype == ir.DataType.INT8 else self._whole
            owner.register_initializer(weight)
        self._mel.replace_all_uses_with(self._weighted_step("at", self._state, self._slopes))
        self._row.replace_all_uses_with(self._row_of("rows"))
        self._builder.graph.extend(nodes)
        older = self._op("Slice", [self._slopes, self._next, self._last, self._axis], "slopes.older")
        newest = self._op("Unsqueeze", [velocity, self._axis], "slope")
        slopes = self._op("Concat", [older, newest], "slopes.next", axis=0)
        state = self._weighted_step("after", self._state, slopes)
        go_on = self._op("Identity", [self._go_on], "go_on.next")
        results = [go_on, state, slopes]
        for value, result in zip((self._go_on, *self.carried), results, strict=True):
            result.type, result.shape = value.type, value.shape
        self._builder.graph.outputs.extend(results)

    def graph(self) -> ir.Graph:
        return self._builder.graph

    def _weighted_step(self, weights: str, state: ir.Value, slopes: ir.Value) -> ir.Value:
        """Return the state plus the slopes, weighted by this evaluation's row of the table ``weights``."""
        weighted = self._op("Mul", [slopes, self._row_of(weights)], f"{weights}.weighted")
        step = self._op("ReduceSum", [weighted, self._axis], f"{weights}.sum", keepdims=0)
        return self._op("Add", [state, step], f"{weights}.state")

    def _row_of(self, table: str) -> ir.Value:
        """Return this evaluation's row of a table."""
        return self._op("Gather", [self._tables[table], self._number], f"{table}.now")

    def _op(
        self, op_type: str, inputs: list[ir.Value], name: str, output: ir.Value | None = None, **attributes: int
    ) -> ir.Value:
        return self._builder.op(op_type, inputs, f"ode.{name}", output=output, attributes=attributes)


def _weights(variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of slopes before and after an evaluation, each [evaluations, slopes, 1, 1, 1, 1] float32."""
    at, after = (weights.astype(np.float32)[..., None, None, None, None] for weights in variant.weights())
    return at, after


def _rows(variant: Variant, table: np.ndarray) -> np.ndarray:
    times = variant.times()
    rows = np.searchsorted(table, times)
    for time, row in zip(times, rows, strict=True):
        if row == len(table) or table[row] != time:
            raise UserError(f"{STEP} has no row for time {time}: exported for other variants; export token2wav again")
    return rows


def _like(name: str, value: ir.Value) -> ir.Value:
    return ir.Value(name=name, type=value.type, shape=value.shape)


def _value(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


@app.command()
def main(
    step: Annotated[Path, typer.Argument(metavar="STEP.onnx", help="Graph dit_step, float32 or INT8.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_FOLDER", help="Folder that is written.")],
    variant: Annotated[str, typer.Option(help="Sampler variant of the ODE.")] = DEFAULT,
) -> None:
    """Write the whole ODE as one graph."""
    if not step.is_file():
        raise UserError(f"{step}: missing; run python -m export token2wav, or dvc repro")
    artifact.require_replaceable(out, KIND, "token2wav")
    settings = artifact.read_json(step.with_name(SETTINGS))
    try:
        declared, times = variants(settings["variants"]), np.array(settings["times"], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{SETTINGS}: not what this version of the project writes ({error}); export again") from None
    if variant not in declared:
        raise UserError(f"--variant {variant}: {SETTINGS} has {', '.join(declared)}")
    stem = step.stem.replace(STEP, "dit_ode")
    made_from = {file.name: artifact.sha256(file) for file in (step, data_file(step))}
    facts = {"kind": KIND, "component": "token2wav", "made_from": made_from, "variant": variant, "graphs": [stem]}
    with artifact.writing(out, **facts) as folder:
        save_graph(ode_loop_graph(step, declared[variant], times), folder, stem)


if __name__ == "__main__":
    run_app(app)
