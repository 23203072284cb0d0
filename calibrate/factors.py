"""Smoothing factors: how far each channel of an activation is divided, so that its outliers move into the weights.

Xiao et al. 2022, SmoothQuant (arXiv 2211.10438); ``quantize.smoothing`` applies them.
"""

from __future__ import annotations

import numpy as np

__all__ = ["smoothing_factors"]

_TINY = 1e-5  # of the largest channel: below it a channel is taken for silent


def smoothing_factors(activation_absmax: np.ndarray, weight_absmax: np.ndarray, alpha: float) -> np.ndarray:
    """Return s [channels] = activation_absmax^alpha / weight_absmax^(1 - alpha), with geometric mean 1.

    Args:
        activation_absmax: largest magnitude of each input channel in calibration.
        weight_absmax: largest magnitude of each row, over all matrices that share the activation.
        alpha: 0 leaves the activation's outliers alone but for the weights' own imbalance; 1 flattens it.
    """
    activation, weight = _audible(activation_absmax), _audible(weight_absmax)
    factors = activation**alpha / weight ** (1 - alpha)
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)


def _audible(absmax: np.ndarray) -> np.ndarray:
    floor = max(float(absmax.max()) * _TINY, float(np.finfo(np.float32).tiny))
    return np.maximum(absmax.astype(np.float64), floor)
