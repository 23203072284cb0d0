"""Matrices in blocks that share a scale, in the layout of ONNX Runtime's ``MatMulNBits``.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

import numpy as np

__all__ = ["attributes", "block_scales", "block_values", "in_blocks", "packed"]

# The operator quantizes its activations to INT8. At level 0 it turns the weights to float32 instead, 20 times slower.
_ACCURACY_LEVEL = 4


def attributes(into: int, out: int, block: int, bits: int) -> dict[str, int]:
    """Return the operator's attributes for a matrix of ``out`` outputs over ``into`` inputs."""
    return {"K": into, "N": out, "bits": bits, "block_size": block, "accuracy_level": _ACCURACY_LEVEL}


def in_blocks(matrix: np.ndarray, block: int, axis: int = 1) -> np.ndarray:
    """Return a matrix with its axis of inputs cut into [blocks, block], filled up with zeros to whole blocks.

    [outputs, inputs] becomes [outputs, blocks, block]; [inputs, outputs], with axis 0, [blocks, block, outputs].
    """
    padding = -matrix.shape[axis] % block
    if padding:
        matrix = np.pad(matrix, [(0, padding if place == axis else 0) for place in range(2)])
    return matrix.reshape(*matrix.shape[:axis], -1, block, *matrix.shape[axis + 1 :])


def block_scales(blocked: np.ndarray, bits: int, axis: int = -1) -> np.ndarray:
    """Return what sends each block's value of largest magnitude to the lowest code, float32.

    That code, -8 or -128, has no positive twin: with the sign in the scale, none is wasted. Of two values of one
    magnitude the first one decides: if one sign always did, what is cut off the other would add up.

    Args:
        blocked: values, for instance [outputs, blocks, block].
        bits: of a code.
        axis: along which a block lies; the result has the others.
    """
    largest, smallest = blocked.max(axis), blocked.min(axis)
    extreme = np.where(largest >= -smallest, largest, smallest)
    tied = largest == -smallest
    blocks = np.moveaxis(blocked, axis, -1)[tied]
    extreme[tied] = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], -1)[:, 0]
    return np.where(extreme != 0, extreme / -_middle(bits), 1).astype(np.float32)


def block_values(blocked: np.ndarray, scales: np.ndarray, bits: int, axis: int = -1) -> np.ndarray:
    """Return codes, UINT8, a block's bytes along the last axis; of 4 bits, two a byte, the first one low.

    Args:
        blocked: as :func:`block_scales` takes it.
        scales: that it returned.
        bits: of a code.
        axis: along which a block lies.
    """
    middle = _middle(bits)
    scaled = blocked / np.expand_dims(scales, axis)
    np.rint(scaled, out=scaled)
    scaled += middle
    values = np.moveaxis(np.clip(scaled, 0, 2 * middle - 1, out=scaled).astype(np.uint8), axis, -1)
    return packed(values, bits)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes, UINT8, as the operator stores them: of 4 bits, two a byte along the last axis, the first one low.

    An odd number of them, as there may be of zero points, is filled up with a zero.
    """
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def _middle(bits: int) -> int:
    return 1 << (bits - 1)
