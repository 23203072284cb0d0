"""Smoothing: move an activation's outlier channels into the weights, where each output channel has its own scale.

Xiao et al. 2022, SmoothQuant (arXiv 2211.10438): x W = (x / s) (diag(s) W), exactly. What is new here is only where
the 1/s goes: into the weights of what made the activation, where it has some, and into a Mul elsewhere.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omni.graph_builder import CONTRIB, GraphBuilder
from omni.grouped_query import producer_of, shared_channels
from omni.weight import Weight

__all__ = ["fold"]


def fold(
    activation: ir.Value, consumers: list[ir.Node], factors: np.ndarray, weights: dict[ir.Node, Weight]
) -> str | None:
    """Divide ``activation`` by ``factors`` inside what makes it: a linear layer, a normalization, attention's values.

    A product takes them in one of its operands: silu(gate) * up in the layer that makes ``up``.

    Args:
        activation: what ``consumers`` read.
        consumers: the only nodes that may read it; all of them expect it divided.
        factors: [channels].
        weights: of every MatMul in the graph; the producer's is scaled in place.

    Returns:
        The name of the node that took the factors, or None where nothing could: another reader sees the
        activation, or something else makes it.
    """
    if activation.is_graph_output() or {use.node for use in activation.uses()} != set(consumers):
        return None
    taker = (
        _into_linear(activation, factors, weights)
        or _into_norm(activation, factors)
        or _into_scale(activation, factors)
        or _into_operand(activation, factors, weights)
        or _into_grouped_values(activation, factors, weights)
    )
    if taker is None and (values := _attended_values(activation)) is not None:
        taker = _into_linear(values, factors, weights)
    return taker


def _into_linear(activation: ir.Value, factors: np.ndarray, weights: dict[ir.Node, Weight]) -> str | None:
    """Scale the columns of the MatMul, or MatMul and Add of a bias, that makes the activation."""
    producer = activation.producer()
    if producer in weights:
        if weights[producer].shape[1] != len(factors):
            return None  # it makes one value a token, which is spread over the channels
        weights[producer].scale_columns(1 / factors)
        return producer.name
    if producer is None or producer.op_type != "Add" or producer.domain:
        return None
    addends = [value for value in producer.inputs if value is not None]
    bias = next((value for value in addends if _is_vector(value, len(factors))), None)
    product = next((value for value in addends if value is not bias), None)
    if bias is None or product is None or _only_reader(product) is not producer or product.producer() not in weights:
        return None
    taker = _into_linear(product, factors, weights)
    if taker:
        _divide(producer, addends.index(bias), factors)
    return taker


def _into_norm(activation: ir.Value, factors: np.ndarray) -> str | None:
    """Scale the weight and the bias of the LayerNormalization that makes the activation.

    Each is a vector, or a row gathered from a table of vectors, one for each time of a diffusion transformer (adaLN).
    """
    producer = activation.producer()
    if producer is None or producer.op_type != "LayerNormalization" or producer.domain:
        return None
    operands = [index for index, value in enumerate(producer.inputs) if index and value is not None]
    found = [_vectors(producer, index, len(factors)) for index in operands]
    places = [place for place in found if place is not None]
    if len(places) < len(operands):
        return None
    for node, index in places:
        _divide(node, index, factors)
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


def _into_scale(activation: ir.Value, factors: np.ndarray) -> str | None:
    """Scale the vector that comes last in an RMS normalization: its weight.

    That is an operand of a Mul, where the normalization is spelt out, or of the operator that adds and normalizes. The
    sum, another output of that operator, is what was before the weight.
    """
    node = producer_of(activation, "Mul") or producer_of(activation, "SkipSimplifiedLayerNormalization", CONTRIB)
    if node is None or activation is not node.outputs[0]:
        return None
    for index in (0, 1) if node.op_type == "Mul" else (2,):
        if _is_vector(node.inputs[index], len(factors)):
            _divide(node, index, factors)
            return node.name
    return None


def _into_operand(activation: ir.Value, factors: np.ndarray, weights: dict[ir.Node, Weight]) -> str | None:
    """Scale the linear layer that makes one operand of the Mul that makes the activation.

    Of ``silu(gate) * up`` that is up's: silu, which is not linear, stands between gate's and the Mul.
    """
    node = producer_of(activation, "Mul")
    operands = [value for value in node.inputs if _only_reader(value) is node] if node is not None else []
    return next((taker for value in operands if (taker := _into_linear(value, factors, weights))), None)


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
    return _into_linear(packed, np.concatenate([others, of_values]), weights)


def _attended_values(activation: ir.Value) -> ir.Value | None:
    """Return the values of the attention whose output, all heads side by side, is ``activation``; else None.

    Attention mixes tokens, never channels: a factor on a channel of the values comes out on that channel. The graph
    reads ``values -> Reshape to heads -> Transpose -> MatMul(probabilities, .) -> Transpose -> Reshape``.
    """
    for op_type, index in (("Reshape", 0), ("Transpose", 0), ("MatMul", 1), ("Transpose", 0), ("Reshape", 0)):
        producer = activation.producer()
        if producer is None or producer.op_type != op_type or producer.domain:
            return None
        if op_type == "Transpose" and list(producer.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
            return None
        activation = producer.inputs[index]
        if _only_reader(activation) is not producer:
            return None
    return activation


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _divide(node: ir.Node, index: int, factors: np.ndarray) -> None:
    """Replace a node's constant vector, or table of vectors, by one that is divided by ``factors``."""
    value = node.inputs[index]
    divided = ir.tensor((value.const_value.numpy() / factors).astype(np.float32), name=f"{value.name}_smoothed")
    node.replace_input_with(index, GraphBuilder(node.graph).initializer(divided))


def _is_vector(value: ir.Value, length: int) -> bool:
    return value.const_value is not None and value.const_value.shape.numpy() == (length,)
