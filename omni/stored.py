"""Matrices of a float32 graph as the checkpoint stores them: bfloat16 or float16, and a Cast to float32 behind each.

Every number of 16 bits is a float32 number, so that the graph computes the same bits from half the disk. ONNX Runtime
computes each Cast once, when it opens a session, and then holds and runs what it would of a graph stored in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from omni.checkpoint import Checkpoint
from omni.streamed import StreamedTensor, WidenedTensor

__all__ = ["checkpoint_dtype", "load_graph", "loaded_bytes", "narrow"]

_NARROW = {"BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16}  # by safetensors' names
_WIDENED = ".float32"  # ends the name of a Cast and of its output


def checkpoint_dtype(checkpoint: Checkpoint, *names: str) -> ir.DataType | None:
    """Return the type of 16 bits that the checkpoint stores all these tensors in; None if there is none."""
    dtypes = {checkpoint.spec(name).dtype for name in names}
    return _NARROW.get(dtypes.pop()) if len(dtypes) == 1 else None


def narrow(graph: ir.Graph) -> None:
    """Store every matrix and every kernel of a float32 graph in the checkpoint's 16 bits, with a Cast behind it.

    Vectors, and what is computed from the checkpoint, stay float32.
    """
    wide: dict[ir.Value, ir.TensorProtocol] = {}
    for value in graph.initializers.values():
        tensor = _narrowed(value.const_value)
        if tensor is not None and all(node.graph is graph for node, _ in value.uses()):
            wide[value] = tensor
    for node in list(graph):
        for value in node.inputs:
            if value is not None and (tensor := wide.pop(value, None)):
                _cast(graph, node, value, tensor)


def load_graph(graph_file: Path) -> ir.Model:
    """Load a float32 graph as if it were stored in float32: matrices of 16 bits are cast when their rows are read."""
    model = ir.load(graph_file)
    graph = model.graph
    for node in list(graph):
        stored = node.inputs[0] if node.op_type == "Cast" else None
        if stored is None or not stored.is_initializer() or stored.dtype not in _NARROW.values():
            continue
        stored.const_value = WidenedTensor(str(stored.name), stored.const_value)
        stored.type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].replace_all_uses_with(stored)
        graph.remove(node, safe=True)
    return model


def loaded_bytes(tensor: ir.TensorProtocol) -> int:
    """Return what a weight takes in a session's memory: of 16 bits, it is cast to float32."""
    return tensor.size * 4 if tensor.dtype in _NARROW.values() else tensor.nbytes


def _narrowed(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """Return a tensor of 16 bits with the values of a float32 one; None if that is not how the checkpoint has them."""
    if isinstance(tensor, WidenedTensor):
        return tensor.stored
    if not isinstance(tensor, StreamedTensor) or tensor.checkpoint_dtype is None or len(tensor.shape) < 2:
        return None
    dtype, source = tensor.checkpoint_dtype, tensor

    def blocks() -> Iterator[np.ndarray]:
        for block in source.blocks():
            yield block.astype(dtype.numpy())

    return StreamedTensor(str(tensor.name), dtype, tensor.shape.numpy(), blocks)


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Store an initializer as ``tensor``, with a Cast before the first node that reads it."""
    name, readers = f"{value.name}{_WIDENED}", list(value.uses())
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=name)
    output = node.outputs[0]
    output.name, output.shape, output.type = name, value.shape, value.type
    for reader, index in readers:
        reader.replace_input_with(index, output)
    value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
    graph.insert_before(before, node)
