"""Histograms in constant memory, and the clipping ranges with the least quantization error.

The last bin ends at a power of two, so that bins of any two histograms are the same, or merge in pairs until they are:
one of many clips is that of each clip, merged.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["Histogram", "SignedHistogram"]

_BINS = 4096  # half of them at least lie below the largest value
_CANDIDATES = 100
_LEAST = 2.0**-64  # the smallest limit, of zeros alone


class Histogram:
    """Histogram of |x| in equal bins from 0; for a value beyond the last bin, the range doubles.

    Bins then merge in pairs.

    Attributes:
        weights: Sum of the weights of the values in each bin, [4096].
        limit: Upper edge of the last bin, a power of two; 0 while there are no values.
        absmax: Largest magnitude so far.
    """

    def __init__(self) -> None:
        self.weights = np.zeros(_BINS)
        self.limit = 0.0
        self.absmax = 0.0

    def add(self, values: np.ndarray, channel_weights: np.ndarray) -> None:
        """Add values [tokens, channels], each with the weight of its channel.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        magnitudes = np.abs(values)
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise ValueError("NaN or infinity in an activation")
        self._reach(_power_of_two(largest))
        bins = np.minimum((magnitudes * (_BINS / self.limit)).astype(np.int64), _BINS - 1)
        self.weights += np.bincount(
            bins.ravel(), np.broadcast_to(channel_weights, magnitudes.shape).ravel(), minlength=_BINS
        )
        self.absmax = max(self.absmax, largest)

    def merge(self, other: Histogram) -> None:
        """Add what another histogram counted; its range may double."""
        limit = max(self.limit, other.limit)
        self._reach(limit)
        other._reach(limit)
        self.weights += other.weights
        self.absmax = max(self.absmax, other.absmax)

    def _reach(self, limit: float) -> None:
        self.limit = self.limit or limit
        while self.limit < limit:
            self.weights = np.concatenate([self.weights.reshape(-1, 2).sum(1), np.zeros(_BINS // 2)])
            self.limit *= 2

    def best_range(self, levels: int = 127) -> float:
        """Return the range [-r, r] whose uniform quantization to 2*levels + 1 values has the least mean squared error.

        A value beyond r is clipped at the cost (|x| - r)^2; every other value costs step^2 / 12. The candidates are
        100 equal fractions of the largest value.
        """
        if not self.absmax:
            return 1.0
        centres = (np.arange(_BINS) + 0.5) * (self.limit / _BINS)
        ranges = self.absmax * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
        clipping = np.maximum(centres[None] - ranges[:, None], 0) ** 2
        rounding = (ranges / levels) ** 2 / 12
        cost = np.where(centres[None] > ranges[:, None], clipping, rounding[:, None]) @ self.weights
        return float(ranges[cost.argmin()])


class SignedHistogram:
    """Histogram of x in equal bins on both sides of 0; for a value beyond the last bin, the range doubles.

    Bins then merge in pairs.

    Attributes:
        weights: Sum of the weights of the values in each bin, from -limit to limit, [8192].
        limit: Upper edge of the last bin, a power of two; 0 while there are no values.
        lowest: Smallest value so far, or 0 if none is negative.
        highest: Largest value so far, or 0 if none is positive.
    """

    def __init__(self) -> None:
        self.weights = np.zeros(2 * _BINS)
        self.limit = 0.0
        self.lowest = self.highest = 0.0

    def add(self, values: np.ndarray, channel_weights: np.ndarray) -> None:
        """Add values [tokens, channels], each with the weight of its channel.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        lowest, highest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        largest = max(-lowest, highest)
        if not np.isfinite(largest):
            raise ValueError("NaN or infinity in an activation")
        self._reach(_power_of_two(largest))
        bins = np.clip(np.floor(values * (_BINS / self.limit)).astype(np.int64) + _BINS, 0, 2 * _BINS - 1)
        weights = np.broadcast_to(channel_weights, values.shape)
        self.weights += np.bincount(bins.ravel(), weights.ravel(), minlength=2 * _BINS)
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)

    def merge(self, other: SignedHistogram) -> None:
        """Add what another histogram counted; its range may double."""
        limit = max(self.limit, other.limit)
        self._reach(limit)
        other._reach(limit)
        self.weights += other.weights
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)

    def _reach(self, limit: float) -> None:
        self.limit = self.limit or limit
        while self.limit < limit:
            half = np.zeros(_BINS // 2)
            self.weights = np.concatenate([half, self.weights.reshape(-1, 2).sum(1), half])
            self.limit *= 2

    def best_range(self, steps: int = 255) -> tuple[float, float]:
        """Return the range [low, high] around 0 whose quantization to ``steps`` steps has the least squared error.

        A value beyond the range is clipped at the cost of its squared distance; every other value costs step^2 / 12.
        The candidates for each end are 100 equal fractions of the outermost value on that side.
        """
        if not (self.lowest or self.highest):
            return -1.0, 1.0
        centres = (np.arange(2 * _BINS) + 0.5) * (self.limit / _BINS) - self.limit
        fractions = np.arange(_CANDIDATES + 1) / _CANDIDATES
        lows, highs = self.lowest * fractions, self.highest * fractions
        below, above = np.maximum(lows[:, None] - centres, 0), np.maximum(centres - highs[:, None], 0)
        outside = [((side > 0) @ self.weights, side**2 @ self.weights) for side in (below, above)]
        (many_below, cut_below), (many_above, cut_above) = outside
        inside = self.weights.sum() - many_below[:, None] - many_above
        step = (highs - lows[:, None]) / steps
        cost = cut_below[:, None] + cut_above + np.where(step > 0, inside * step**2 / 12, np.inf)
        low, high = np.unravel_index(cost.argmin(), cost.shape)
        return float(lows[low]), float(highs[high])


def _power_of_two(value: float) -> float:
    """Return the smallest power of two that is not below a value."""
    mantissa, exponent = math.frexp(max(value, _LEAST))
    return math.ldexp(1.0, exponent - (mantissa == 0.5))
