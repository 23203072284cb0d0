"""Constant weights of a graph, read from external data in blocks; matrices with the exact changes made to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from omni.hadamard import rotate
from omni.streamed import external_rows, row_blocks

__all__ = ["Kernel", "Weight", "convolutions", "matmuls"]


@dataclass
class Weight:
    """A constant matrix [in, out] float32 with changes to its rows and columns; only :meth:`whole` holds it in memory.

    The matrix is ``Hr^T diag(row_scale) tensor diag(column_scale) Hc``, of which ``columns`` are taken.

    Attributes:
        tensor: The matrix as the graph stores it.
        row_scale: Factors of the rows, [in]; None if there are none.
        row_run: Number of rows that a Hadamard rotation Hr mixes; 0 if there is none.
        column_scale: Factors of the columns, [out]; None if there are none.
        column_run: Number of columns that a Hadamard rotation Hc mixes; 0 if there is none.
        columns: The columns that belong to the matrix; None for all of them.
    """

    tensor: ir.TensorProtocol
    row_scale: np.ndarray | None = None
    row_run: int = 0
    column_scale: np.ndarray | None = None
    column_run: int = 0
    columns: slice | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of inputs and outputs."""
        rows, columns = self.tensor.shape.numpy()
        return int(rows), len(range(*(self.columns or slice(None)).indices(int(columns))))

    @property
    def changed(self) -> bool:
        """Whether the matrix differs from the tensor."""
        return (
            self.row_scale is not None
            or self.column_scale is not None
            or bool(self.row_run or self.column_run)
            or self.columns is not None
        )

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of consecutive rows, [rows, out]."""
        rows_in_all, columns_in_all = self.tensor.shape.numpy()
        for rows in row_blocks(int(rows_in_all), 4 * int(columns_in_all), max(1, self.row_run)):
            block = external_rows(self.tensor, rows).astype(np.float32)
            if self.row_scale is not None:
                block *= self.row_scale[rows, None]
            if self.row_run:
                block = rotate(block, self.row_run, axis=0)
            if self.column_scale is not None:
                block *= self.column_scale
            if self.column_run:
                block = rotate(block, self.column_run)
            yield block if self.columns is None else np.ascontiguousarray(block[:, self.columns])

    def whole(self) -> np.ndarray:
        """Return the whole matrix, [in, out]."""
        result = np.empty(self.shape, np.float32)
        position = 0
        for block in self.blocks():
            result[position : position + len(block)] = block
            position += len(block)
        return result

    def row_absmax(self) -> np.ndarray:
        """Return the largest magnitude in each row, [in]."""
        return np.concatenate([np.abs(block).max(1) for block in self.blocks()])

    def row_energy(self) -> np.ndarray:
        """Return the sum of squares of each row, [in]."""
        return np.concatenate([np.square(block).sum(1) for block in self.blocks()])

    def column_absmax(self) -> np.ndarray:
        """Return the largest magnitude in each column, [out]."""
        largest = np.zeros(self.shape[1], np.float32)
        for block in self.blocks():
            np.maximum(largest, np.abs(block).max(0), out=largest)
        return largest

    def product(self, row: np.ndarray) -> np.ndarray:
        """Return ``row`` [in] times the matrix, [out] float32, with the same bits on every machine."""
        result, position = np.zeros(self.shape[1]), 0
        for block in self.blocks():
            result += (row[position : position + len(block), None].astype(np.float64) * block).sum(0)
            position += len(block)
        return result.astype(np.float32)

    def change_rows(self, factors: np.ndarray, run: int = 0) -> None:
        """Multiply the rows by ``factors`` [in]; then rotate runs of ``run`` rows, if it is not 0."""
        assert not self.row_run, "rows are rotated once, last of all"
        self.row_scale = factors if self.row_scale is None else self.row_scale * factors
        self.row_run = run

    def change_columns(self, factors: np.ndarray, run: int = 0) -> None:
        """Multiply the columns by ``factors`` [out]; then rotate runs of ``run`` columns, if it is not 0."""
        assert not self.column_run, "columns are rotated once, last of all"
        self.column_scale = factors if self.column_scale is None else self.column_scale * factors
        self.column_run = run

    def part(self, columns: slice) -> Weight:
        """Return some of the columns, as a matrix of its own."""
        assert self.columns is None, "a part has no parts"
        return replace(self, columns=columns)


@dataclass(frozen=True)
class Kernel:
    """A convolution's kernel ``tensor`` [out, in, ...], never in memory as a whole."""

    tensor: ir.TensorProtocol

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of output channels, of input channels, and of taps along each axis."""
        return tuple(int(size) for size in self.tensor.shape.numpy())

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of consecutive output channels, [rows, in, ...]."""
        for rows in row_blocks(self.shape[0], 4 * math.prod(self.shape[1:])):
            yield external_rows(self.tensor, rows).astype(np.float32)

    def out_absmax(self) -> np.ndarray:
        """Return the largest magnitude in each output channel, [out]."""
        return np.concatenate([np.abs(block).reshape(len(block), -1).max(1) for block in self.blocks()])

    def in_energy(self) -> np.ndarray:
        """Return the sum of squares of the taps that each input channel is multiplied by, [in]."""
        channels = self.shape[1]
        return np.sum(
            [np.square(block).reshape(len(block), channels, -1).sum((0, 2)) for block in self.blocks()], axis=0
        )


def matmuls(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """Return the MatMuls with a constant matrix, grouped by the activation that they share."""
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        activation, weight = node.inputs
        if activation is None or weight is None or weight.const_value is None or len(weight.shape or ()) != 2:
            continue
        groups.setdefault(activation, []).append(node)
    return groups


def convolutions(graph: ir.Graph) -> list[ir.Node]:
    """Return the Convs with constant weight and bias and one group: output channels read all input channels."""
    return [
        node
        for node in graph
        if node.op_type == "Conv"
        and not node.domain
        and all(value is None or value.const_value is not None for value in node.inputs[1:])
        and node.attributes.get_int("group", 1) == 1
    ]
