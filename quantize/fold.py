"""Exact changes of an activation before it is quantized, folded into what produces it.

Channels become x' = rotate((x - shift) / factors), and each matrix W that reads them W' = rotate(factors * W), with
shift W added to its bias: the same product, but easier to quantize. The factors move outlier channels into the weights,
where each output channel has its own scale: Xiao et al. 2022, SmoothQuant (arXiv 2211.10438). The shift removes each
channel's mean. The rotation spreads loud channels: :mod:`omni.hadamard`. What is new here is only where a change goes:
into the weights of what makes the activation, where it has some, and into nodes elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from omni.change import Change
from omni.graph_builder import CONTRIB, GraphBuilder
from omni.grouped_query import producer_of, shared_channels
from omni.weight import Weight

__all__ = ["fold", "shifts_softmax_alone"]


def fold(activation: ir.Value, consumers: list[ir.Node], change: Change, weights: dict[ir.Node, Weight]) -> str | None:
    """Change ``activation`` inside what makes it: a linear layer, a normalization, attention's values.

    A product takes factors in one of its operands: silu(gate) * up in the layer that makes ``up``.

    Args:
        activation: The activation that ``consumers`` read.
        consumers: The only nodes that may read it; all of them expect it changed.
        change: The change.
        weights: Matrices of every MatMul in the graph; the producer's is changed in place.

    Returns:
        The name of the node that took the change, or None where nothing could take all of it: another reader sees the
        activation, or something else makes it.
    """
    if activation.is_graph_output() or {use.node for use in activation.uses()} != set(consumers):
        return None
    taker = _into_linear(activation, change, weights) or _into_norm(activation, change)
    if taker is None and change.shift is None and not change.run:
        taker = (
            _into_scale(activation, change)
            or _into_operand(activation, change, weights)
            or _into_grouped_values(activation, change.factors, weights)
        )
    if taker is None and (values := _attended_values(activation, change)) is not None:
        taker = _into_linear(values, change, weights)
    return taker


def shifts_softmax_alone(product: ir.Value) -> bool:
    """Whether a constant vector added to a value would change no output: it makes attention's keys.

    It then adds the same number to all scores of a query, which softmax does not see. The graph reads ``value ->
    Reshape to heads -> Transposes -> MatMul(queries, .) -> Mul by a constant, Add of a mask -> Softmax``.
    """
    value, scores = product, False
    while (node := _only_reader(value)) is not None and not node.domain and len(node.outputs) == 1:
        if node.op_type == "Softmax":
            return scores
        if node.op_type == "MatMul" and value is node.inputs[1]:
            scores = True
        elif not (_keeps_queries_apart(node, value) if scores else node.op_type in ("Reshape", "Transpose")):
            return False
        value = node.outputs[0]
    return False


def _keeps_queries_apart(node: ir.Node, scores: ir.Value) -> bool:
    """Whether a node scales scores by a constant or adds a mask, so that softmax does not see a common shift."""
    others = [value for value in node.inputs if value is not scores]
    return node.op_type == "Add" or (node.op_type in ("Mul", "Div") and all(map(_is_number, others)))


def _into_linear(activation: ir.Value, change: Change, weights: dict[ir.Node, Weight]) -> str | None:
    """Change the columns of the MatMul, or MatMul and Add of a bias, that makes the activation."""
    producer = activation.producer()
    if producer in weights:
        if weights[producer].shape[1] != len(change.factors) or change.shift is not None:
            return None  # it makes one value a token, which is spread over the channels; or it has no bias
        weights[producer].change_columns(1 / change.factors, change.run)
        return producer.name
    if producer is None or producer.op_type != "Add" or producer.domain:
        return None
    addends = [value for value in producer.inputs if value is not None]
    bias = next((value for value in addends if _is_vector(value, len(change.factors))), None)
    product = next((value for value in addends if value is not bias), None)
    if bias is None or product is None or _only_reader(product) is not producer or product.producer() not in weights:
        return None
    taker = _into_linear(product, replace(change, shift=None), weights)
    if taker:
        _replace(producer, addends.index(bias), change)
    return taker


def _into_norm(activation: ir.Value, change: Change) -> str | None:
    """Change the weight and the bias of the LayerNormalization that makes the activation.

    Each is a vector, or a row gathered from a table of vectors, one for each time of a diffusion transformer (adaLN).
    """
    producer = activation.producer()
    if producer is None or producer.op_type != "LayerNormalization" or producer.domain or change.run:
        return None
    operands = [index for index, value in enumerate(producer.inputs) if index and value is not None]
    found = [_vectors(producer, index, len(change.factors)) for index in operands]
    places = [place for place in found if place is not None]
    if len(places) < len(operands) or (change.shift is not None and len(places) < 2):
        return None
    for (node, index), part in zip(places, (replace(change, shift=None), change), strict=False):
        _replace(node, index, part)
    return producer.name


def _vectors(node: ir.Node, index: int, length: int) -> tuple[ir.Node, int] | None:
    """Return the node and its input that hold what is behind an operand: a constant vector, or a table of them."""
    value = node.inputs[index]
    if _is_vector(value, length):
        return node, index
    gather = value.producer()
    if gather is None or gather.op_type != "Gather" or gather.domain or _only_reader(value) is not node:
        return None
    table = gather.inputs[0]
    rows = table.const_value is not None and table.const_value.shape.numpy()[1:] == (length,)
    return (gather, 0) if rows and gather.attributes.get_int("axis", 0) == 0 else None


def _into_scale(activation: ir.Value, change: Change) -> str | None:
    """Scale the vector that comes last in an RMS normalization: its weight.

    That is an operand of a Mul, where the normalization is spelt out, or of the operator that adds and normalizes. The
    sum, another output of that operator, is what was before the weight.
    """
    node = producer_of(activation, "Mul") or producer_of(activation, "SkipSimplifiedLayerNormalization", CONTRIB)
    if node is None or activation is not node.outputs[0]:
        return None
    for index in (0, 1) if node.op_type == "Mul" else (2,):
        if _is_vector(node.inputs[index], len(change.factors)):
            _replace(node, index, change)
            return node.name
    return None


def _into_operand(activation: ir.Value, change: Change, weights: dict[ir.Node, Weight]) -> str | None:
    """Scale the linear layer that makes one operand of the Mul that makes the activation.

    Of ``silu(gate) * up`` that is up's: silu, which is not linear, stands between gate's and the Mul.
    """
    node = producer_of(activation, "Mul")
    operands = [value for value in node.inputs if _only_reader(value) is node] if node is not None else []
    return next((taker for value in operands if (taker := _into_linear(value, change, weights))), None)


def _into_grouped_values(activation: ir.Value, factors: np.ndarray, weights: dict[ir.Node, Weight]) -> str | None:
    """Scale, of the linear layer that makes queries, keys and values of grouped-query attention, the values' columns.

    The present values are then divided too, and the past ones are taken for divided. They are outputs and inputs of
    the graph, but a cache: nothing reads them except the same graph, in its next run, and an empty one is divided.
    """
    node, shared = activation.producer(), shared_channels(activation, len(factors))
    if node is None or shared is None:
        return None
    packed, of_values = node.inputs[0], np.ones(shared.max() + 1, np.float32)
    of_values[shared] = factors
    if _only_reader(packed) is not node or (of_values[shared] != factors).any():
        return None
    others = np.ones(len(factors) + len(of_values), np.float32)  # queries, as many as outputs, and keys, as values
    return _into_linear(packed, Change(np.concatenate([others, of_values])), weights)


def _attended_values(activation: ir.Value, change: Change) -> ir.Value | None:
    """Return the values of the attention whose output, all heads side by side, is ``activation``; else None.

    Attention mixes tokens, never channels: what is done to each of the values comes out. Of a shift that is true
    because probabilities add up to 1, and of a rotation where it stays within a head. The graph reads ``values ->
    Reshape to heads -> Transpose -> MatMul(probabilities, .) -> Transpose -> Reshape``.
    """
    for op_type, index in (("Reshape", 0), ("Transpose", 0), ("MatMul", 1), ("Transpose", 0), ("Reshape", 0)):
        producer = activation.producer()
        if producer is None or producer.op_type != op_type or producer.domain:
            return None
        if op_type == "Transpose" and list(producer.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
            return None
        if op_type == "MatMul" and change.shift is not None and producer_of(producer.inputs[0], "Softmax") is None:
            return None
        activation = producer.inputs[index]
        if op_type == "MatMul" and change.run and not _is_multiple(activation, change.run):
            return None
        if _only_reader(activation) is not producer:
            return None
    return activation


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _replace(node: ir.Node, index: int, change: Change) -> None:
    """Replace a node's constant vector, or table of vectors, by one that is changed."""
    value = node.inputs[index]
    changed = ir.tensor(change.of(value.const_value.numpy()), name=f"{value.name}_smoothed")
    node.replace_input_with(index, GraphBuilder(node.graph).initializer(changed))


def _is_multiple(heads: ir.Value, run: int) -> bool:
    """Whether the last axis of a value is known to be a multiple of ``run``."""
    width = None if heads.shape is None else heads.shape[-1]
    return isinstance(width, int) and width % run == 0


def _is_number(value: ir.Value | None) -> bool:
    """Whether a value is a constant scalar, or one that a Constant node makes."""
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return constant is not None and constant.size == 1


def _is_vector(value: ir.Value, length: int) -> bool:
    return value.const_value is not None and value.const_value.shape.numpy() == (length,)
