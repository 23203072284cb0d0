"""Tensors that are computed in blocks while they are written, and a writer of graphs with such tensors.

A graph never holds a weight in memory: each initializer is a :class:`StreamedTensor`, whose blocks are read, cast,
transposed, scaled or quantized when they are written to disk.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from omni.resources import progress

__all__ = [
    "BLOCK_BYTES",
    "StreamedTensor",
    "WidenedTensor",
    "data_file",
    "external_rows",
    "initializers",
    "row_blocks",
    "save_graph",
    "tensor_blocks",
]

BLOCK_BYTES = 16 * 2**20  # small beside any model, large enough to be read at full speed


class StreamedTensor(ir.LazyTensor):
    """An onnx_ir tensor whose values ``blocks()`` yields: consecutive slices along the first axis.

    Attributes:
        checkpoint_dtype: Narrower type that the checkpoint stores these values in, exactly; None if there is none.
    """

    __slots__ = ("_blocks", "checkpoint_dtype")

    def __init__(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        blocks: Callable[[], Iterator[np.ndarray]],
        checkpoint_dtype: ir.DataType | None = None,
    ) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)
        self._blocks = blocks
        self.checkpoint_dtype = checkpoint_dtype

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield consecutive slices along the first axis."""
        return self._blocks()

    def _whole(self) -> ir.Tensor:
        return ir.tensor(np.concatenate(list(self._blocks())).reshape(self.shape.numpy()), name=self.name)

    def tobytes(self) -> bytes:
        """Return the bytes of all values, little-endian, as a file holds them."""
        return b"".join(block.tobytes() for block in self._blocks())

    def tofile(self, file: BinaryIO) -> None:
        """Write the values block by block.

        Raises:
            ValueError: The blocks do not add up to the tensor's size.
        """
        written = 0
        for block in self._blocks():
            written += file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer
        if written != self.nbytes:
            raise ValueError(f"{self.name}: {written} bytes written, {self.nbytes} expected")


class WidenedTensor(StreamedTensor):
    """A float32 tensor whose values are stored in 16 bits.

    Attributes:
        stored: The tensor as it is stored: bfloat16 or float16.
    """

    __slots__ = ("stored",)

    def __init__(self, name: str, stored: ir.TensorProtocol) -> None:
        super().__init__(name, ir.DataType.FLOAT, stored.shape.numpy(), self._widened)
        self.stored = stored

    def _widened(self) -> Iterator[np.ndarray]:
        for _, block in tensor_blocks(self.stored):
            yield block.astype(np.float32)


def row_blocks(rows: int, row_bytes: int, multiple: int = 1) -> Iterator[slice]:
    """Yield slices of about ``BLOCK_BYTES`` that cover ``rows`` rows; all but the last hold a multiple of rows."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes) // multiple) * multiple
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def external_rows(tensor: ir.TensorProtocol, rows: slice) -> np.ndarray:
    """Return a slice of a tensor's rows; if it is external data, only the bytes of these rows are read."""
    if isinstance(tensor, WidenedTensor):
        return external_rows(tensor.stored, rows).astype(np.float32)
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()[rows]
    shape = tensor.shape.numpy()
    row_size = math.prod(shape[1:])
    dtype = tensor.dtype.numpy()
    offset = (tensor.offset or 0) + rows.start * row_size * dtype.itemsize
    flat = np.fromfile(tensor.path, dtype, count=(rows.stop - rows.start) * row_size, offset=offset)
    return flat.reshape(-1, *shape[1:])


def tensor_blocks(tensor: ir.TensorProtocol) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index of the first row, and the rows, of each block of a tensor; a scalar is one block."""
    shape = tensor.shape.numpy()
    if not shape:
        yield 0, tensor.numpy()
        return
    for rows in row_blocks(shape[0], tensor.nbytes // max(1, shape[0])):
        yield rows.start, external_rows(tensor, rows)


def data_file(graph: Path) -> Path:
    """Return the file of a graph's external data: ``<name>.onnx.data`` beside ``<name>.onnx``."""
    return graph.with_name(f"{graph.name}.data")


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Yield every initializer of a model, those of bodies of loops too."""
    for graph in model.graphs():
        yield from graph.initializers.values()


def _stream_constants(model: ir.Model) -> None:
    """Stream small tensors like large ones: NumPy's ``tofile`` may truncate a file without an error."""
    for value in initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.Tensor) and tensor.size:
            array = tensor.numpy().reshape(-1)
            shape = tensor.shape.numpy()
            value.const_value = StreamedTensor(str(value.name), tensor.dtype, shape, partial(_once, array))


def _once(array: np.ndarray) -> Iterator[np.ndarray]:
    yield array


def save_graph(model: ir.Model, folder: Path, stem: str) -> None:
    """Write ``<stem>.onnx`` and ``<stem>.onnx.data``, with the same bytes for the same graph on every machine.

    Node metadata and doc strings are removed, because they hold paths of the machine, and so is the local label of
    PyTorch's version. Files get mode 0644 whatever the umask.
    """
    ClearMetadataAndDocStringPass()(model)
    _stream_constants(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *initializers(model)):
        value.metadata_props.clear()
    if model.producer_version:
        model.producer_version = model.producer_version.partition("+")[0]
    graph_file = folder / f"{stem}.onnx"
    data = data_file(graph_file)
    total = sum(value.const_value.nbytes for value in initializers(model) if value.const_value)
    with progress(stem, total, in_bytes=True) as advance:
        ir.save(
            model,
            graph_file,
            external_data=data.name,
            callback=lambda tensor, _: advance(tensor.nbytes),
        )
    for file in (graph_file, data):
        os.chmod(file, 0o644)
