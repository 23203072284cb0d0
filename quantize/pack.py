"""How quantized matrices are stored, computed in blocks while they are written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from omni.streamed import row_blocks
from quantize.weight import Kernel, Weight

__all__ = ["block_scales", "block_values", "column_scale", "int8_channels", "int8_columns"]

_LEVELS = 127


def column_scale(weight: Weight) -> np.ndarray:
    """Return the scale of each output channel, [out] float32: its largest magnitude / 127."""
    absmax = weight.column_absmax()
    return np.where(absmax > 0, absmax / _LEVELS, 1).astype(np.float32)


def int8_columns(weight: Weight, scale: np.ndarray) -> Iterator[np.ndarray]:
    """Yield consecutive rows [some, out] INT8 of round(weight / scale)."""
    for block in weight.blocks():
        yield np.clip(np.rint(block / scale), -_LEVELS, _LEVELS).astype(np.int8)


def int8_channels(kernel: Kernel, scale: np.ndarray) -> Iterator[np.ndarray]:
    """Yield consecutive output channels [some, in, ...] INT8 of round(kernel / scale).

    Args:
        kernel: a convolution's.
        scale: of each output channel, [out].
    """
    position = 0
    for block in kernel.blocks():
        by = scale[position : position + len(block)].reshape(-1, *[1] * (block.ndim - 1))
        position += len(block)
        yield np.clip(np.rint(block / by), -_LEVELS, _LEVELS).astype(np.int8)


def block_values(weight: Weight, block: int, bits: int) -> Iterator[np.ndarray]:
    """Yield [some outputs, blocks, bytes] UINT8 in the layout of MatMulNBits: two 4-bit values a byte, low first."""
    middle = 1 << (bits - 1)
    for blocked in _blocked(weight, block):
        scaled = blocked / _block_scale(blocked, middle)[..., None]
        values = np.clip(np.rint(scaled) + middle, 0, 2 * middle - 1).astype(np.uint8)
        yield values if bits == 8 else values[..., ::2] | (values[..., 1::2] << 4)


def block_scales(weight: Weight, block: int, bits: int) -> Iterator[np.ndarray]:
    """Yield [some outputs, blocks] float32: the scale of each block."""
    for blocked in _blocked(weight, block):
        yield _block_scale(blocked, 1 << (bits - 1))


def _blocked(weight: Weight, block: int) -> Iterator[np.ndarray]:
    """Yield [some outputs, blocks, block]: the matrix transposed, and filled up with zeros to whole blocks."""
    rows, columns = weight.shape
    whole = weight.whole()
    padding = -rows % block
    for outputs in row_blocks(columns, 4 * rows):
        transposed = np.pad(whole[:, outputs].T, ((0, 0), (0, padding)))
        yield transposed.reshape(len(transposed), -1, block)


def _block_scale(blocked: np.ndarray, middle: int) -> np.ndarray:
    """Scale that sends each block's value of largest magnitude to -middle, the code that has no positive twin."""
    extreme = np.take_along_axis(blocked, np.abs(blocked).argmax(-1)[..., None], -1)[..., 0]
    return np.where(extreme != 0, extreme / -middle, 1).astype(np.float32)
