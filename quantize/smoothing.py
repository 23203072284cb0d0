"""Smoothing: move an activation's outlier channels into the weights, where each output channel has its own scale.

Xiao et al. 2022, SmoothQuant (arXiv 2211.10438): x W = (x / s) (diag(s) W), exactly. What is new here is only where
the 1/s goes: into the matrix and bias that made the activation, where there is one, and into a Mul elsewhere.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantize.weight import Weight

__all__ = ["fold", "smoothing_factors"]

_TINY = 1e-5  # of the largest channel: below it a channel is taken for silent


def smoothing_factors(activation_absmax: np.ndarray, weight_absmax: np.ndarray, alpha: float) -> np.ndarray:
    """Return s [channels] = activation_absmax^alpha / weight_absmax^(1 - alpha), with geometric mean 1.

    Args:
        activation_absmax: largest magnitude of each input channel in calibration.
        weight_absmax: largest magnitude of each row, over all matrices that share the activation.
        alpha: 0 leaves the activation's outliers alone but for the weights' own imbalance; 1 flattens it.
    """
    activation, weight = _audible(activation_absmax), _audible(weight_absmax)
    factors = activation**alpha / weight ** (1 - alpha)
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)


def fold(
    activation: ir.Value, consumers: list[ir.Node], factors: np.ndarray, weights: dict[ir.Node, Weight]
) -> str | None:
    """Divide ``activation`` by ``factors`` inside the MatMul, or MatMul and Add, that makes it.

    Args:
        activation: what ``consumers`` read.
        consumers: the only nodes that may read it; all of them expect it divided.
        factors: [channels].
        weights: of every MatMul in the graph; the producer's is scaled in place.

    Returns:
        The name of the node that took the factors, or None where nothing could: another reader sees the
        activation, or something else than a linear layer makes it.
    """
    if activation.is_graph_output() or {use.node for use in activation.uses()} != set(consumers):
        return None
    producer = activation.producer()
    if producer is not None and producer.op_type == "Add" and not producer.domain:
        bias = next((v for v in producer.inputs if v is not None and _is_vector(v, len(factors))), None)
        product = next((v for v in producer.inputs if v is not bias), None)
        if bias is None or product is None or len(product.uses()) != 1 or product.is_graph_output():
            return None
        linear = product.producer()
        if linear not in weights:
            return None
        scaled = ir.tensor((bias.const_value.numpy() / factors).astype(np.float32), name=f"{bias.name}_smoothed")
        producer.replace_input_with(producer.inputs.index(bias), initializer(activation.graph, scaled))
    else:
        linear = producer
        if linear not in weights:
            return None
    weights[linear].scale_columns(1 / factors)
    return linear.name


def initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer of a graph."""
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _audible(absmax: np.ndarray) -> np.ndarray:
    floor = max(float(absmax.max()) * _TINY, float(np.finfo(np.float32).tiny))
    return np.maximum(absmax.astype(np.float64), floor)


def _is_vector(value: ir.Value, length: int) -> bool:
    return value.const_value is not None and value.const_value.shape.numpy() == (length,)
