"""Smoothing factors, by which an activation's channels are divided so that its outliers move into the weights.

Xiao et al. 2022, SmoothQuant (arXiv 2211.10438); ``quantize.smoothing`` applies them.
"""

from __future__ import annotations

import numpy as np

__all__ = ["smoothing_factors"]

_TINY = 1e-5  # smallest absmax, relative to the largest channel; smaller ones are raised to it


def smoothing_factors(activation_absmax: np.ndarray, weight_absmax: np.ndarray, alpha: float) -> np.ndarray:
    """Return s [channels] = activation_absmax^alpha / weight_absmax^(1 - alpha), with geometric mean 1.

    Args:
        activation_absmax: Largest magnitude of each input channel in calibration, [channels].
        weight_absmax: Largest magnitude of each row, over all matrices that share the activation, [channels].
        alpha: Share of the activation's imbalance that moves into the weights: 1 equalizes the activation's channels,
            0 the weights' rows.
    """
    activation, weight = _floored(activation_absmax), _floored(weight_absmax)
    factors = activation**alpha / weight ** (1 - alpha)
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)


def _floored(absmax: np.ndarray) -> np.ndarray:
    floor = max(float(absmax.max()) * _TINY, float(np.finfo(np.float32).tiny))
    return np.maximum(absmax.astype(np.float64), floor)
