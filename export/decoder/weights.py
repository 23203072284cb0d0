"""A decoder's tensors as they are written: read from the checkpoint in pieces, transposed or quantized on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from omni import nbits
from omni.checkpoint import Checkpoint
from omni.stored import checkpoint_dtype
from omni.streamed import StreamedTensor, row_blocks

__all__ = ["Matrix", "block_quantized", "vector", "write_embedding"]


@dataclass(frozen=True)
class Matrix:
    """Linear layers of the checkpoint that read the same activation, one below the other: [outputs, inputs].

    Attributes:
        checkpoint: The checkpoint that holds them.
        names: Names of their weights, each [outputs, inputs].
        cut: Slice of the outputs, for a single layer; None for all of them.
    """

    checkpoint: Checkpoint
    names: tuple[str, ...]
    cut: slice | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        shapes = [self.checkpoint.spec(name).shape for name in self.names]
        outputs = sum(shape[0] for shape in shapes)
        if self.cut:
            outputs = len(range(*self.cut.indices(outputs)))
        return outputs, shapes[0][1]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield consecutive rows [some outputs, inputs] float32, about ``BLOCK_BYTES`` of them at a time."""
        for name in self.names:
            rows, columns = self.checkpoint.spec(name).shape
            start, stop, _ = (self.cut or slice(None)).indices(rows)
            for piece in row_blocks(stop - start, 4 * columns):
                read = self.checkpoint.read_rows(name, slice(start + piece.start, start + piece.stop))
                yield read.astype(np.float32)

    def transposed(self, name: str) -> StreamedTensor:
        """Return the tensor [inputs, outputs] float32 that ``MatMul`` wants.

        While it is written, all of it is in memory as the checkpoint stores it; what is packed, in float32.
        """
        outputs, inputs = self.shape

        def blocks() -> Iterator[np.ndarray]:
            stored = self._stored()
            for columns in row_blocks(inputs, 4 * outputs):
                yield stored[:, columns].T.astype(np.float32, order="C")

        narrow = checkpoint_dtype(self.checkpoint, *self.names)
        return StreamedTensor(name, ir.DataType.FLOAT, (inputs, outputs), blocks, narrow)

    def _stored(self) -> np.ndarray:
        outputs, inputs = self.shape
        first = self.checkpoint.read_rows(self.names[0], self.cut or slice(None))
        if len(self.names) == 1:
            return first
        same = len({self.checkpoint.spec(name).dtype for name in self.names}) == 1
        stored = np.empty((outputs, inputs), first.dtype if same else np.float32)  # some may be packed, others not
        position = 0
        for name in self.names:
            rows = self.checkpoint.read(name)
            stored[position : position + len(rows)] = rows
            position += len(rows)
        return stored


def block_quantized(matrix: Matrix, block: int, bits: int) -> nbits.BlockMatrix:
    """Return a matrix as ``MatMulNBits`` takes it, rounded to the nearest code.

    Args:
        matrix: The matrix.
        block: Inputs that share a scale.
        bits: Bits of a code.
    """

    def blocked() -> Iterator[np.ndarray]:
        for rows in matrix.blocks():
            yield nbits.in_blocks(np.ascontiguousarray(rows.T), block, axis=0)

    return nbits.quantized(matrix.shape, block, bits, blocked)


def vector(checkpoint: Checkpoint, names: tuple[str, ...], name: str) -> StreamedTensor:
    """Return the tensor [width] float32 of one vector of the checkpoint, or of several end to end."""
    width = sum(checkpoint.spec(one).shape[0] for one in names)

    def blocks() -> Iterator[np.ndarray]:
        for one in names:
            yield checkpoint.read(one).astype(np.float32)

    return StreamedTensor(name, ir.DataType.FLOAT, (width,), blocks)


def write_embedding(checkpoint: Checkpoint, name: str, path: Path) -> None:
    """Write an embedding table [vocabulary, width] as a ``.npy`` file, exactly as the checkpoint stores it.

    NumPy has no bfloat16: its 16 bits are written as UINT16, half of what float32 would take. They are the upper half
    of a float32's: ``(rows.astype(np.uint32) << 16).view(np.float32)``. They are read by
    :class:`qwen_omni_onnx.embedding.EmbeddingTable`.
    """
    spec = checkpoint.spec(name)
    rows, width = spec.shape
    sample = checkpoint.read_rows(name, slice(0, 0))
    dtype = np.dtype(np.uint16) if sample.dtype == ml_dtypes.bfloat16 else sample.dtype
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": spec.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in row_blocks(rows, width * dtype.itemsize):
            file.write(checkpoint.read_rows(name, piece).view(dtype).data)
