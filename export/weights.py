"""Put the checkpoint's tensors behind a traced graph's initializers, to be read when the graph is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from export.exporter import Traced
from omni.checkpoint import Checkpoint
from omni.stored import checkpoint_dtype
from omni.streamed import StreamedTensor, row_blocks
from qwen_omni_onnx.common.errors import UserError

__all__ = ["bind"]


def bind(
    model: ir.Model,
    checkpoint: Checkpoint,
    traced: Traced,
    settings: Any,
) -> None:
    """Replace every initializer by one that streams its tensor as float32; fold ``Transpose(weight)`` into it.

    A parameter may have axes of size 1 that its tensor lacks.

    Args:
        model: Graph that :func:`export.trace.trace` returned.
        checkpoint: Checkpoint that holds the tensors.
        traced: Description of where the values come from.
        settings: The component's ``export`` block of ``params.yaml``.

    Raises:
        UserError: The checkpoint lacks a tensor, or has another shape.
    """
    graph = model.graph
    constants, derived = traced.constants(checkpoint.config), traced.derived(checkpoint, settings)
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or len(weight.shape or ()) != 2:
            continue
        result = node.outputs[0]
        folded = _initializer(
            result.name, _transposed, checkpoint, traced.tensor_name(weight.name), weight.shape.numpy()[::-1]
        )
        graph.register_initializer(folded)
        result.replace_all_uses_with(folded)
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            graph.initializers.pop(name)
        elif name in constants:
            value.const_value = ir.tensor(constants[name], name=name)
        elif name in derived:
            value.const_value = _computed(name, derived[name], value.shape.numpy())
        elif not isinstance(value.const_value, StreamedTensor):
            bound = _initializer(name, _as_stored, checkpoint, traced.tensor_name(name), value.shape.numpy())
            value.const_value = bound.const_value


def _computed(name: str, compute: Callable[[], np.ndarray], shape: tuple[int, ...]) -> StreamedTensor:
    """Return a float32 tensor that is computed, whole, at the moment it is written."""

    def blocks() -> Iterator[np.ndarray]:
        array = compute().astype(np.float32)
        if array.shape != shape:
            raise ValueError(f"{name}: computed as {list(array.shape)}, traced as {list(shape)}")
        yield array

    return StreamedTensor(name, ir.DataType.FLOAT, shape, blocks)


def _initializer(
    name: str,
    blocks: Callable[[Checkpoint, str], Iterator[np.ndarray]],
    checkpoint: Checkpoint,
    tensor: str,
    shape: tuple[int, ...],
) -> ir.Value:
    stored = checkpoint.spec(tensor).shape
    if not (shape == stored[::-1] if blocks is _transposed else _same_values(shape, stored)):
        raise UserError(
            f"{checkpoint.path}: tensor {tensor} is {list(stored)}, which does not fit {name} {list(shape)}"
        )
    narrow = checkpoint_dtype(checkpoint, tensor)
    streamed = StreamedTensor(name, ir.DataType.FLOAT, shape, lambda: blocks(checkpoint, tensor), narrow)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=streamed)


def _same_values(shape: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Whether they are the same but for axes of size 1, as the height of a convolution along one axis."""
    return [size for size in shape if size != 1] == [size for size in stored if size != 1]


def _as_stored(checkpoint: Checkpoint, tensor: str) -> Iterator[np.ndarray]:
    stored = checkpoint.read(tensor)
    for rows in row_blocks(len(stored), 4 * stored[:1].size):
        yield stored[rows].astype(np.float32)


def _transposed(checkpoint: Checkpoint, tensor: str) -> Iterator[np.ndarray]:
    """Yield rows of the transpose: [out, in] as PyTorch stores it, [in, out] as MatMul wants it."""
    stored = checkpoint.read(tensor)
    for columns in row_blocks(stored.shape[1], 4 * len(stored)):
        yield stored[:, columns].T.astype(np.float32, order="C")
