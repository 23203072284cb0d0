"""Matrices in blocks that share a scale, in the layout of ONNX Runtime's ``MatMulNBits``.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

import numpy as np

__all__ = ["attributes", "block_scales", "block_values", "in_blocks"]

# The operator quantizes its activations to INT8. At level 0 it turns the weights to float32 instead, 20 times slower.
_ACCURACY_LEVEL = 4


def attributes(into: int, out: int, block: int, bits: int) -> dict[str, int]:
    """Return the operator's attributes for a matrix of ``out`` outputs over ``into`` inputs."""
    return {"K": into, "N": out, "bits": bits, "block_size": block, "accuracy_level": _ACCURACY_LEVEL}


def in_blocks(rows: np.ndarray, block: int) -> np.ndarray:
    """Return [outputs, blocks, block] of weights [outputs, inputs], filled up with zeros to whole blocks."""
    padding = -rows.shape[1] % block
    if padding:
        rows = np.pad(rows, ((0, 0), (0, padding)))
    return rows.reshape(len(rows), -1, block)


def block_scales(blocked: np.ndarray, bits: int) -> np.ndarray:
    """Return [outputs, blocks] float32: what sends each block's value of largest magnitude to the lowest code.

    That code, -8 or -128, has no positive twin: with the sign in the scale, none is wasted.
    """
    extreme = np.take_along_axis(blocked, np.abs(blocked).argmax(-1)[..., None], -1)[..., 0]
    return np.where(extreme != 0, extreme / -_middle(bits), 1).astype(np.float32)


def block_values(blocked: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Return [outputs, blocks, bytes] UINT8; of 4 bits, two values a byte, the first one low."""
    middle = _middle(bits)
    scaled = blocked / scales[..., None]
    np.rint(scaled, out=scaled)
    scaled += middle
    values = np.clip(scaled, 0, 2 * middle - 1, out=scaled).astype(np.uint8)
    return values if bits == 8 else values[..., ::2] | (values[..., 1::2] << 4)


def _middle(bits: int) -> int:
    return 1 << (bits - 1)
