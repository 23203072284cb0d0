"""How loud a sound and its channels are: what is found out while it is read, and what follows from that."""

from __future__ import annotations

import numpy as np

__all__ = ["Levels"]

_HIGHEST = 100.0  # 40 dB above full scale: nothing is recorded there, and of 16 bits it would be a whisper, at -50 dB
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)  # of integers of 16, 24 and 32 bits
_OVER = 2.0  # resampled integers may go over their full scale, too
_SHARE = 1e-3  # of all samples are beyond 1: few strays would be, and nearly all integers are
_CANCELLED = 0.02  # -17 dB: channels that are the same but for their sign, and some noise
_SILENT = 2.0**-15  # RMS below the smallest step of 16 bits, -90 dB


class Levels:
    """Levels of a sound that comes in blocks.

    Powers leave out what a channel's samples have in common: a constant is no sound.

    Args:
        channels: How many there are.

    Attributes:
        peak: Highest magnitude of a sample; full scale is 1.
    """

    def __init__(self, channels: int) -> None:
        self._frames = 0
        self._above = 0  # samples beyond full scale
        self._sums, self._products = np.zeros(channels), np.zeros((channels, channels))
        self.peak = 0.0

    def add(self, block: np.ndarray) -> None:
        """Take in a block, [frames, channels] float64."""
        self._frames += len(block)
        peak = float(max(block.max(), -block.min()))
        self.peak = max(self.peak, peak)
        if peak > 1:
            self._above += int(np.count_nonzero(np.abs(block) > 1))
        with np.errstate(over="ignore", invalid="ignore"):  # sound that is not finite is refused once it is whole
            self._sums += np.ones(len(block)) @ block  # a sum over an axis takes ten times as long
            self._products += block.T @ block

    @property
    def full_scale(self) -> float:
        """Full scale: 1, or that of integers that were written as floating-point numbers."""
        if self.peak <= _HIGHEST or self._above < _SHARE * self._frames * len(self._sums):
            return 1.0
        return next((scale for scale in _FULL_SCALES if self.peak <= _OVER * scale), 1.0)

    @property
    def is_beyond(self) -> bool:
        """Whether samples are beyond what any recording holds, and are no integers either."""
        return self.peak > _HIGHEST and self.full_scale == 1

    @property
    def is_silent(self) -> bool:
        """Whether no channel holds more than the smallest step of 16 bits."""
        return bool(self._powers.max() < (_SILENT * self.full_scale) ** 2)

    @property
    def cancels(self) -> bool:
        """Whether channels cancel out in their mean, as those of a balanced line do.

        Their mean is then far below what channels that have nothing in common would leave: the sum of their powers,
        divided by the square of their number.
        """
        power_of_sum = self._covariance.sum()
        return not self.is_silent and bool(power_of_sum < _CANCELLED * self._powers.sum())

    @property
    def loudest(self) -> int:
        """Index of the loudest channel."""
        return int(self._powers.argmax())

    @property
    def _powers(self) -> np.ndarray:
        """Mean square of each channel, [channels]."""
        return self._covariance.diagonal()

    @property
    def _covariance(self) -> np.ndarray:
        """Mean product of each two channels, [channels, channels]."""
        frames = max(1, self._frames)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._products / frames - np.outer(self._sums, self._sums) / frames**2
