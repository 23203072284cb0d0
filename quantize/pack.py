"""Quantized matrices in the layouts of their operators, computed in blocks while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from omni import nbits
from omni.streamed import row_blocks
from omni.weight import Kernel, Weight

__all__ = ["LEVELS", "block_matrix", "column_scale", "int8_channels", "int8_columns"]

LEVELS = 127


def column_scale(weight: Weight) -> np.ndarray:
    """Return the scale of each output channel, [out] float32: its largest magnitude / 127."""
    absmax = weight.column_absmax()
    return np.where(absmax > 0, absmax / LEVELS, 1).astype(np.float32)


def int8_columns(weight: Weight, scale: np.ndarray) -> Iterator[np.ndarray]:
    """Yield consecutive rows [some, out] INT8 of round(weight / scale)."""
    for block in weight.blocks():
        yield np.clip(np.rint(block / scale), -LEVELS, LEVELS).astype(np.int8)


def int8_channels(kernel: Kernel, scale: np.ndarray) -> Iterator[np.ndarray]:
    """Yield consecutive output channels [some, in, ...] INT8 of round(kernel / scale).

    Args:
        kernel: Weight of a convolution.
        scale: Scale of each output channel, [out].
    """
    position = 0
    for block in kernel.blocks():
        channels = scale[position : position + len(block)].reshape(-1, *[1] * (block.ndim - 1))
        position += len(block)
        yield np.clip(np.rint(block / channels), -LEVELS, LEVELS).astype(np.int8)


def block_matrix(weight: Weight, block: int, bits: int, importance: np.ndarray | None) -> nbits.BlockMatrix:
    """Return a matrix as MatMulNBits takes it, quantized while it is written.

    Args:
        weight: The matrix, [in, out].
        block: Number of inputs that share a scale.
        bits: Bits of a code.
        importance: Mean square of each input in calibration, [in]; None if it is not known.
    """
    return nbits.quantized(
        (weight.shape[1], weight.shape[0]), block, bits, partial(_blocked, weight, block), importance
    )


def _blocked(weight: Weight, block: int) -> Iterator[np.ndarray]:
    """Yield [blocks, block, some outputs], filled up with zeros to whole blocks.

    The matrix stays as it lies in memory: the values of a block of its transpose would lie far from each other.
    """
    rows, columns = weight.shape
    whole = weight.whole()
    for outputs in row_blocks(columns, 4 * rows):
        yield nbits.in_blocks(whole[:, outputs], block, axis=0)
