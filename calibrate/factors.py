"""Smoothing factors, by which an activation's channels are divided so that its outliers move into the weights.

Xiao et al. 2022, SmoothQuant (arXiv 2211.10438), and a search of its choices for the least error at the output; for
weights of few bits, a power of each channel's root mean square, as the search of Lin et al. 2023, AWQ (arXiv
2306.00978), finds it. ``quantize.fold`` applies the factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omni.hadamard import rotate

__all__ = ["rms_factors", "searched_factors", "smoothing_factors"]

_ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7)  # that the search tries
_QUIET = 1e-4  # smallest magnitude in the search, relative to the largest channel
_LEVELS = 127
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
    return _normalized(activation**alpha / weight ** (1 - alpha))


def rms_factors(rms: np.ndarray, alpha: float) -> np.ndarray:
    """Return s [channels] = rms^alpha, with geometric mean 1.

    Args:
        rms: Root mean square of each input channel in calibration, [channels].
        alpha: Exponent. On a trained decoder 0.3 to 0.4 for all nodes was better than a search node by node, which
            fits the calibration's tokens.
    """
    return _normalized(_floored(rms) ** alpha)


def searched_factors(
    tokens: np.ndarray, absmax: np.ndarray, rms: np.ndarray, weights: Sequence[np.ndarray], run: int
) -> np.ndarray:
    """Return the smoothing factors with the least error at the outputs, quantized as ``int8-token`` does.

    Tried are two measures of a channel's loudness, absmax and root mean square, each with five exponents.

    Args:
        tokens: Some of the activation's tokens, shifted, [tokens, in].
        absmax: Largest magnitude of each shifted channel, [in].
        rms: Root mean square of each shifted channel, [in].
        weights: Matrices that read the activation, each [in, out].
        run: Number of channels that a Hadamard rotation mixes after smoothing; 0 if there is none.
    """
    rows = np.sqrt(np.mean([np.square(weight, dtype=np.float64).mean(1) for weight in weights], axis=0))
    expected = [tokens @ weight for weight in weights]
    energies = [max(float(np.square(product - product.mean(0)).sum()), 1e-30) for product in expected]
    best, least = np.ones(tokens.shape[1], np.float32), np.inf
    for loudness in (absmax, rms):
        for alpha in _ALPHAS:
            tried = _floored(loudness, _QUIET) ** alpha / _floored(rows, _QUIET) ** (1 - alpha)
            factors = _normalized(tried)
            seen = _as_uint8(_rotated(tokens / factors, run, -1))
            error = 0.0
            for weight, product, energy in zip(weights, expected, energies, strict=True):
                stored = _as_int8(_rotated(weight * factors[:, None], run, 0))
                error += float(np.square(seen @ stored - product).sum()) / energy
            if error < least:
                best, least = factors, error
    return best


def _rotated(values: np.ndarray, run: int, axis: int) -> np.ndarray:
    return rotate(values, run, axis) if run else values


def _as_uint8(tokens: np.ndarray) -> np.ndarray:
    """Return tokens as the scheme quantizes them: one scale a token."""
    step = np.maximum(np.abs(tokens).max(-1, keepdims=True), 1e-9) / _LEVELS
    return np.rint(tokens / step) * step


def _as_int8(weight: np.ndarray) -> np.ndarray:
    """Return a matrix as the scheme quantizes it: one scale for each output."""
    step = np.maximum(np.abs(weight).max(0), 1e-30) / _LEVELS
    return np.rint(weight / step) * step


def _normalized(factors: np.ndarray) -> np.ndarray:
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)


def _floored(absmax: np.ndarray, tiny: float = _TINY) -> np.ndarray:
    floor = max(float(absmax.max()) * tiny, float(np.finfo(np.float32).tiny))
    return np.maximum(absmax.astype(np.float64), floor)
