"""Made-up speakers for synthetic weights: the 7B's names, and values like those of real ones.

Integer arithmetic and exact scaling only, as for the weights: the same bytes on every machine.
"""

from __future__ import annotations

import math

import numpy as np

from pull.draws import stream
from pull.speakers import Voices
from qwen_omni_onnx.common.speakers import Widths

__all__ = ["BOS_TOKENS", "FRAMES", "made_up"]

BOS_TOKENS = {"Chelsie": 151872, "Ethan": 151870}
FRAMES = 400  # of the reference mel: four seconds
_BITS = 32  # of a drawn integer
_DRAWS = 8  # whose sum is nearly normal: one value of ``cond``
_SPAN_FRAMES, _SPAN_MELS = 8, 4  # over which a mel is smooth: about a phoneme, and a formant
_MEL_MEAN, _MEL_SPREAD = -5.0, 2.0
_MEL_FLOOR = -11.5  # about log(1e-5), where logarithms of mels are cut off


def made_up(widths: Widths, seed: int, vocabulary: int) -> Voices:
    """Return two voices; see :data:`pull.speakers.Voices`.

    ``cond`` is nearly normal with a spread of 1, as speaker embeddings that end in a batch normalization are;
    ``ref_mel`` is a smooth logarithm of a mel spectrogram around -5 with a spread of 2.

    Args:
        widths: of the configuration.
        seed: of all values.
        vocabulary: of the Thinker: where it is a small one, the voices' tokens are its last ones.
    """
    return {
        name: {
            "cond": _cond(f"{seed}/{name}/cond", widths.cond)[np.newaxis],
            "ref_mel": _ref_mel(f"{seed}/{name}/ref_mel", widths.ref_mel)[np.newaxis],
            "bos_token": np.array([min(bos_token, vocabulary - 1 - number)], np.int64),
        }
        for number, (name, bos_token) in enumerate(BOS_TOKENS.items())
    }


def _cond(key: str, width: int) -> np.ndarray:
    return _normal(_drawn(key, (width, _DRAWS)).sum(1), _DRAWS).astype(np.float32)


def _ref_mel(key: str, mels: int) -> np.ndarray:
    noise = _drawn(key, (FRAMES + _SPAN_FRAMES - 1, mels + _SPAN_MELS - 1))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (_SPAN_FRAMES, _SPAN_MELS)).sum((2, 3))
    mel = _MEL_MEAN + _MEL_SPREAD * _normal(smooth, _SPAN_FRAMES * _SPAN_MELS)
    return np.maximum(mel, _MEL_FLOOR).astype(np.float32)


def _drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return integers, uniform in [0, 2^32), with room for sums of them."""
    return (stream(key).random_raw(math.prod(shape)) >> np.uint64(64 - _BITS)).astype(np.int64).reshape(shape)


def _normal(total: np.ndarray, count: int) -> np.ndarray:
    """Return sums of ``count`` uniform integers, centred and scaled to a spread of 1."""
    return (2 * total - count * 2**_BITS).astype(np.float64) * (2.0**-_BITS * math.sqrt(3 / count))
