"""Scales and zero points of blocks of weights with the least weighted squared error."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from omni.resources import workers

__all__ = ["fit", "round_blocks"]

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)  # widths of a block's range that are tried, as shares of it
_REFITS = 2
_CACHED = 2**17  # values of a piece that is fitted at once; it stays in a core's cache


def fit(blocked: np.ndarray, bits: int, importance: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and zero points with the least error: a value is (code - zero point) * scale.

    For each width of the range three zero points are tried, the one in the middle and its neighbours; then the scale
    that fits the codes best in the least-squares sense takes its place. The result does not depend on the number of
    cores: each piece is computed alone.

    Args:
        blocked: Values [blocks, block, outputs].
        bits: Bits of a code.
        importance: Weight of each value's squared error, the mean square of what multiplies it, [blocks, block]; None
            weighs all alike.

    Returns:
        Scales float32 and zero points UINT8, both [blocks, outputs].
    """
    scales, zeros = np.empty(blocked.shape[::2], np.float32), np.empty(blocked.shape[::2], np.uint8)

    def fit_piece(piece: tuple[slice, slice]) -> None:
        weight = None if importance is None else importance[piece[0], :, None].astype(np.float32)
        values = np.ascontiguousarray(blocked[piece[0], :, piece[1]], np.float32)
        scales[piece], zeros[piece] = _fit(values, 2**bits - 1, weight)

    with ThreadPoolExecutor(workers()) as pool:
        list(pool.map(fit_piece, _pieces(blocked.shape)))
    return scales, zeros


def round_blocks(blocked: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    """Return UINT8 codes [blocks, block, outputs] of values with given scales and zero points [blocks, outputs]."""
    codes = np.empty(blocked.shape, np.uint8)
    for rows, columns in _pieces(blocked.shape):
        values = blocked[rows, :, columns] / scales[rows, None, columns]
        np.rint(values, out=values)
        values += zeros[rows, None, columns]
        codes[rows, :, columns] = np.clip(values, 0, 2**bits - 1, out=values)
    return codes


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Yield slices of blocks and of outputs that cover all of them."""
    blocks, block, outputs = shape
    columns = min(outputs, max(1, _CACHED // block))
    rows = max(1, _CACHED // (block * columns))
    for start in range(0, blocks, rows):
        for column in range(0, outputs, columns):
            yield slice(start, min(start + rows, blocks)), slice(column, min(column + columns, outputs))


def _fit(values: np.ndarray, top: int, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
    least = np.full(low.shape, np.inf, np.float32)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    codes, errors = np.empty_like(values), np.empty_like(values)

    def round_to(tried: np.ndarray, at: np.ndarray) -> None:
        """Write the codes, less the zero point, into ``codes``."""
        np.multiply(values, (1 / tried)[:, None], out=codes)
        np.rint(codes, out=codes)
        np.maximum(codes, -at[:, None], out=codes)
        np.minimum(codes, (top - at)[:, None], out=codes)

    def take(tried: np.ndarray, at: np.ndarray) -> None:
        round_to(tried, at)
        np.multiply(codes, tried[:, None], out=errors)
        np.subtract(errors, values, out=errors)
        np.square(errors, out=errors)
        if weight is not None:
            np.multiply(errors, weight, out=errors)
        error = _sum(errors)
        better = error < least
        for kept, found in ((least, error), (scales, tried), (zeros, at)):
            np.copyto(kept, found, where=better)

    for share in _SHRINK:
        tried = np.maximum((high - low) * np.float32(share / top), np.float32(1e-12))
        middle = np.rint(np.float32(top / 2) - (high + low) / 2 / tried)
        for step in (0, -1, 1):
            take(tried, np.clip(middle + step, 0, top).astype(np.float32))
    for _ in range(_REFITS):
        round_to(scales, zeros)
        weighted = codes if weight is None else codes * weight
        energy = _sum(weighted * codes)
        best = np.divide(_sum(weighted * values), energy, out=scales.copy(), where=energy > 0)
        take(np.where(best > 0, best, scales), zeros.copy())
    return scales, zeros.astype(np.uint8)


def _sum(values: np.ndarray) -> np.ndarray:
    """Return the sum over a block, in order: NumPy's own order depends on the array's other axes."""
    total = values[:, 0].copy()
    for index in range(1, values.shape[1]):
        total += values[:, index]
    return total
