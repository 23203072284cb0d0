"""The exact change of an activation before it is quantized: chosen by calibration, made by quantization."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from omni.hadamard import rotate

__all__ = ["Change"]


@dataclass(frozen=True)
class Change:
    """An exact change of an activation: rotate((x - shift) / factors).

    Attributes:
        factors: Smoothing factors, [channels].
        shift: What is subtracted from each channel, [channels]; None if nothing is.
        run: Number of channels that a Hadamard rotation mixes; 0 if there is none.
    """

    factors: np.ndarray
    shift: np.ndarray | None = None
    run: int = 0

    @property
    def scales(self) -> bool:
        """Whether any channel is divided by a factor."""
        return bool((self.factors != 1).any())

    @property
    def changes(self) -> bool:
        """Whether anything changes."""
        return self.scales or self.shift is not None or self.run > 0

    def unrotated(self) -> Change:
        """Return the same change without the rotation."""
        return replace(self, run=0)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return values [..., channels] of the activation, or constants that are added to it, changed."""
        shifted = values if self.shift is None else values - self.shift
        divided = (shifted / self.factors).astype(np.float32)
        return rotate(divided, self.run) if self.run else divided
