"""Constant weights of a graph, read from external data in blocks; matrices with the factors of smoothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omni.streamed import external_rows, row_blocks

__all__ = ["Kernel", "Weight", "convolutions", "matmuls"]


@dataclass
class Weight:
    """``diag(row_scale) @ tensor @ diag(column_scale)``, [in, out] float32; only :meth:`whole` holds it in memory."""

    tensor: ir.TensorProtocol
    row_scale: np.ndarray | None = None
    column_scale: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of inputs and outputs."""
        rows, columns = self.tensor.shape.numpy()
        return int(rows), int(columns)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of consecutive rows, [rows, out]."""
        for rows in row_blocks(self.shape[0], 4 * self.shape[1]):
            block = external_rows(self.tensor, rows).astype(np.float32)
            if self.row_scale is not None:
                block *= self.row_scale[rows, None]
            if self.column_scale is not None:
                block *= self.column_scale
            yield block

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

    def scale_rows(self, factors: np.ndarray) -> None:
        """Multiply the rows by ``factors`` [in]."""
        self.row_scale = factors if self.row_scale is None else self.row_scale * factors

    def scale_columns(self, factors: np.ndarray) -> None:
        """Multiply the columns by ``factors`` [out]."""
        self.column_scale = factors if self.column_scale is None else self.column_scale * factors


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
