"""Rates speech by DNSMOS P.835, whose networks the package speechmos carries.

Source: Reddy, Gopal, Cutler: DNSMOS P.835, arXiv:2110.01763.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["Dnsmos"]


class Dnsmos:
    """DNSMOS's overall score.

    Args:
        model: None: the package has it.

    Raises:
        UserError: A model was named.
        ImportError: speechmos or librosa is not installed.
    """

    rate = 16_000

    def __init__(self, model: Path | None) -> None:
        from speechmos import dnsmos

        if model is not None:
            raise UserError(f"{model}: dnsmos brings its own model; leave --rater-model out")
        self._dnsmos = dnsmos

    def rate_speech(self, samples: np.ndarray) -> float:
        """Return the score: see :class:`validate.ear.scorers.Rater`."""
        return float(self._dnsmos.run(samples, self.rate)["ovrl_mos"])
