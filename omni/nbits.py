"""Blockwise-quantized matrices in the layout of ONNX Runtime's ``MatMulNBits``.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from omni.block_fit import fit, round_blocks
from omni.graph_builder import CONTRIB, GraphBuilder
from omni.streamed import StreamedTensor

__all__ = [
    "BlockMatrix",
    "BlockRows",
    "attributes",
    "block_rows",
    "block_scales",
    "block_values",
    "in_blocks",
    "matmul_nbits",
    "packed",
    "quantized",
]

# The operator quantizes its activations to INT8. At level 0 it dequantizes the weights instead, 20 times slower.
_ACCURACY_LEVEL = 4


def attributes(into: int, out: int, block: int, bits: int) -> dict[str, int]:
    """Return the operator's attributes for a matrix with ``into`` inputs and ``out`` outputs."""
    return {"K": into, "N": out, "bits": bits, "block_size": block, "accuracy_level": _ACCURACY_LEVEL}


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix in the operator's layout, computed while it is written.

    Attributes:
        shape: Numbers of outputs and inputs.
        block: Number of inputs that share a scale.
        bits: Bits of a code, 4 or 8.
        values: Yields the codes of consecutive outputs, [rows, blocks, block * bits / 8] UINT8.
        scales: Yields their scales, [rows, blocks] float32.
        zero_points: Yields their zero points, [rows, ceil(blocks * bits / 8)] UINT8; if it is None, all zero points
            are the middle code, 8 or 128.
    """

    shape: tuple[int, int]
    block: int
    bits: int
    values: Callable[[], Iterator[np.ndarray]]
    scales: Callable[[], Iterator[np.ndarray]]
    zero_points: Callable[[], Iterator[np.ndarray]] | None = None

    def tensors(self, name: str, suffix: str = "") -> list[StreamedTensor]:
        """Return the operator's inputs after the activation: codes, scales and, if there are any, zero points.

        Args:
            name: Prefix of the tensors' names.
            suffix: Suffix of the tensors' names.
        """
        outputs, inputs = self.shape
        blocks = -(-inputs // self.block)
        uint8, float32 = ir.DataType.UINT8, ir.DataType.FLOAT
        values = (outputs, blocks, self.block * self.bits // 8)
        tensors = [
            StreamedTensor(f"{name}.weight_int{self.bits}{suffix}", uint8, values, self.values),
            StreamedTensor(f"{name}.weight_scale{suffix}", float32, (outputs, blocks), self.scales),
        ]
        if self.zero_points is not None:
            packed_row = (outputs, -(-blocks * self.bits // 8))
            tensors.append(StreamedTensor(f"{name}.weight_zero_point{suffix}", uint8, packed_row, self.zero_points))
        return tensors


@dataclass(frozen=True)
class BlockRows:
    """Some outputs of a quantized matrix, in the operator's layout.

    Attributes:
        values: Codes, [rows, blocks, block * bits / 8] UINT8.
        scales: Scales, [rows, blocks] float32.
        zero_points: Zero points, [rows, ceil(blocks * bits / 8)] UINT8; None if they are the middle code.
    """

    values: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None = None


def quantized(
    shape: tuple[int, int],
    block: int,
    bits: int,
    blocked: Callable[[], Iterable[np.ndarray]],
    importance: np.ndarray | None = None,
) -> BlockMatrix:
    """Return a matrix that is quantized while it is written.

    Codes of 8 bits are symmetric: their error is that of the activations anyway. Those of 4 bits have zero points, and
    with them the scales of least error. Codes, scales and zero points are computed together: whoever writes the codes
    first finds the others ready, once.

    Args:
        shape: Numbers of outputs and inputs.
        block: Number of inputs that share a scale.
        bits: Bits of a code, 4 or 8.
        blocked: Yields the values of consecutive outputs, [blocks, block, some outputs].
        importance: Mean square of each input, [inputs]; None if it is not known.
    """
    weight = None if importance is None else in_blocks(importance[None], block)[0]
    ready: dict[str, list[Any]] = {}

    def rows() -> Iterator[BlockRows]:
        for values in blocked():
            yield _symmetric(values, bits) if bits == 8 else _fitted(values, bits, weight)

    def codes() -> Iterator[np.ndarray]:
        scales, zero_points = [], []
        for part in rows():
            scales.append(part.scales)
            zero_points.append(part.zero_points)
            yield part.values
        ready.update(scales=scales, zero_points=zero_points)

    def beside(name: str) -> Iterator[np.ndarray]:
        found = ready.pop(name, None)
        yield from (getattr(part, name) for part in rows()) if found is None else found

    zero_points = None if bits == 8 else partial(beside, "zero_points")
    return BlockMatrix(shape, block, bits, codes, partial(beside, "scales"), zero_points)


def _symmetric(blocked: np.ndarray, bits: int) -> BlockRows:
    """Return values [blocks, block, outputs] rounded to the nearest code, with the middle code for 0."""
    scales = block_scales(blocked, bits, axis=1)
    return BlockRows(np.swapaxes(block_values(blocked, scales, bits, axis=1), 0, 1), scales.T)


def _fitted(blocked: np.ndarray, bits: int, importance: np.ndarray | None) -> BlockRows:
    """Return values [blocks, block, outputs] with the scales and zero points of least error: see :func:`fit`."""
    scales, zero_points = fit(blocked, bits, importance)
    return block_rows(round_blocks(blocked, scales, zero_points, bits), scales, zero_points, bits)


def block_rows(codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, bits: int) -> BlockRows:
    """Return codes [blocks, block, outputs] with scales and zero points [blocks, outputs] in the operator's layout.

    Of 8 bits, whose zero points are the middle code, none are stored.
    """
    values = packed(np.ascontiguousarray(np.moveaxis(codes, -1, 0)), bits)
    stored = None if bits == 8 else packed(np.ascontiguousarray(zero_points.T), bits)
    return BlockRows(values, np.ascontiguousarray(scales.T), stored)


def matmul_nbits(
    builder: GraphBuilder,
    activation: ir.Value,
    matrix: BlockMatrix,
    name: str,
    before: ir.Node | None = None,
    *,
    stored: str,
    suffix: str = "",
    node_name: str = "",
) -> ir.Value:
    """Add a ``MatMulNBits``, which quantizes its own activation; return its output, [..., outputs].

    Args:
        builder: Builder of the graph.
        activation: The activation, [..., inputs].
        matrix: The matrix.
        name: Name of the output, and of the node.
        before: Node before which the new one is inserted; None appends it to the graph.
        stored: Prefix of the initializers' names.
        suffix: Suffix of the initializers' names.
        node_name: Name of the node, if it differs from the output's.
    """
    outputs, inputs = matrix.shape
    return builder.op(
        "MatMulNBits",
        [activation, *(builder.initializer(tensor) for tensor in matrix.tensors(stored, suffix))],
        name,
        before,
        domain=CONTRIB,
        attributes=attributes(inputs, outputs, matrix.block, matrix.bits),
        node_name=node_name,
    )


def in_blocks(matrix: np.ndarray, block: int, axis: int = 1) -> np.ndarray:
    """Return a matrix whose axis of inputs is split into [blocks, block], padded with zeros to whole blocks.

    [outputs, inputs] becomes [outputs, blocks, block]; [inputs, outputs], with axis 0, [blocks, block, outputs].
    """
    padding = -matrix.shape[axis] % block
    if padding:
        matrix = np.pad(matrix, [(0, padding if along == axis else 0) for along in range(2)])
    return matrix.reshape(*matrix.shape[:axis], -1, block, *matrix.shape[axis + 1 :])


def block_scales(blocked: np.ndarray, bits: int, axis: int = -1) -> np.ndarray:
    """Return the float32 scales that map each block's value of largest magnitude to the lowest code.

    That code, -8 or -128, has no positive counterpart: a scale that carries the sign uses it. Of two values of equal
    magnitude the first decides: if one sign always did, the clipping errors of the other would add up to a bias.

    Args:
        blocked: Values, for instance [outputs, blocks, block].
        bits: Bits of a code.
        axis: Axis of a block's values; the result has the other axes.
    """
    largest, smallest = blocked.max(axis), blocked.min(axis)
    extreme = np.where(largest >= -smallest, largest, smallest)
    tied = largest == -smallest
    blocks = np.moveaxis(blocked, axis, -1)[tied]
    extreme[tied] = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], -1)[:, 0]
    return np.where(extreme != 0, extreme / -_middle(bits), 1).astype(np.float32)


def block_values(blocked: np.ndarray, scales: np.ndarray, bits: int, axis: int = -1) -> np.ndarray:
    """Return UINT8 codes, a block's bytes along the last axis; two 4-bit codes share a byte, low bits first.

    Args:
        blocked: Values, for instance [outputs, blocks, block].
        scales: Scales that :func:`block_scales` returned for them.
        bits: Bits of a code.
        axis: Axis of a block's values.
    """
    middle = _middle(bits)
    scaled = blocked / np.expand_dims(scales, axis)
    np.rint(scaled, out=scaled)
    scaled += middle
    values = np.moveaxis(np.clip(scaled, 0, 2 * middle - 1, out=scaled).astype(np.uint8), axis, -1)
    return packed(values, bits)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return UINT8 codes as the operator stores them: two 4-bit codes share a byte of the last axis, low bits first.

    An odd number of codes, as there may be of zero points, is padded with a zero.
    """
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def _middle(bits: int) -> int:
    return 1 << (bits - 1)
