"""Hadamard rotation of channels in runs: it spreads one loud channel over all channels of its run.

Rotations before quantization: Ashkboos et al. 2024, QuaRot (arXiv 2404.00456). The transform is computed by additions
and subtractions in a fixed order, so its bits are the same on every machine, whatever the BLAS library.
"""

from __future__ import annotations

import numpy as np

__all__ = ["matrix", "rotate"]


def rotate(values: np.ndarray, run: int, axis: int = -1) -> np.ndarray:
    """Return ``values`` with each run of channels multiplied by the orthogonal matrix ``H`` [run, run].

    A row vector x of one run becomes x H; a matrix W whose rows are the channels becomes H^T W with ``axis`` 0, so that
    (x H) (H^T W) = x W. Random signs, the same for every run, keep a common mean of the channels from adding up.

    Args:
        values: Values; the size of ``axis`` is a multiple of ``run``.
        run: Number of channels that are mixed, a power of two.
        axis: Axis of the channels.
    """
    moved = np.moveaxis(values, axis, -1).astype(np.float32)
    mixed = moved.reshape(-1, run) * _signs(run)
    half = 1
    while half < run:
        pairs = mixed.reshape(len(mixed), -1, 2, half)
        mixed = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    rotated = mixed.reshape(moved.shape) * np.float32(1 / np.sqrt(run))
    return np.ascontiguousarray(np.moveaxis(rotated, -1, axis))


def matrix(run: int) -> np.ndarray:
    """Return the matrix H [run, run] that :func:`rotate` multiplies by."""
    return rotate(np.eye(run, dtype=np.float32), run)


def _signs(run: int) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array([-1, 1], np.float32), run)
