"""Tells speakers apart by Resemblyzer's network of three LSTM layers, in NumPy.

Resemblyzer itself imports packages that no longer fit together (webrtcvad asks for ``pkg_resources``); its weights do.
Source: Wan et al.: Generalized end-to-end loss for speaker verification, arXiv:1710.10467; the mel spectrogram and the
averaging of parts as in Resemblyzer 0.1.4.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qwen_omni_onnx.common.errors import UserError

__all__ = ["LAYERS", "Ge2e"]

LAYERS = 3
_MELS, _WINDOW, _HOP = 40, 400, 160  # 25 ms and 10 ms at 16 kHz
_PART_FRAMES, _STEP_FRAMES = 160, 77  # 1.6 s, 1.3 times a second


class Ge2e:
    """The network.

    Args:
        model: File ``speaker.safetensors`` with the weights ``lstm.*`` and ``linear.*``.

    Raises:
        UserError: No file was named, or it does not hold the network.
        ImportError: librosa is not installed.
    """

    rate = 16_000

    def __init__(self, model: Path | None) -> None:
        import librosa

        if model is None:
            raise UserError("ge2e: needs a file with its weights; python -m profiles.siblings.ear makes one")
        self._mel = librosa.feature.melspectrogram
        try:
            self._weights = load_file(model)
            hidden = self._weights["linear.weight"].shape[1]
            zeros = np.zeros((1, _PART_FRAMES, _MELS), np.float32)
            self._hidden = hidden
            self._embed_parts(zeros)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{model}: not the network of ge2e: {error}") from None

    def embed(self, samples: np.ndarray) -> np.ndarray:
        """Return the speaker's vector [256]: see :class:`validate.ear.scorers.SpeakerEncoder`."""
        mel = self._mel(y=samples, sr=self.rate, n_fft=_WINDOW, hop_length=_HOP, n_mels=_MELS).T.astype(np.float32)
        if len(mel) < _PART_FRAMES:
            mel = np.resize(mel, (_PART_FRAMES, _MELS))  # again from its beginning
        begins = range(0, len(mel) - _PART_FRAMES + 1, _STEP_FRAMES)
        embedded = self._embed_parts(np.stack([mel[begin : begin + _PART_FRAMES] for begin in begins]))
        mean = embedded.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def _embed_parts(self, frames: np.ndarray) -> np.ndarray:
        """Return a vector of length 1 for each part [parts, frames, mels]."""
        for layer in range(LAYERS):
            frames = self._lstm(frames, layer)
        weight, bias = self._weights["linear.weight"], self._weights["linear.bias"]
        found = np.maximum(frames[:, -1] @ weight.T + bias, 0)
        return np.asarray(found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-5))

    def _lstm(self, frames: np.ndarray, layer: int) -> np.ndarray:
        """Return the states [parts, frames, hidden] of a layer; gates are in PyTorch's order i, f, g, o."""
        weights = self._weights
        bias = weights[f"lstm.bias_ih_l{layer}"] + weights[f"lstm.bias_hh_l{layer}"]
        fed = frames @ weights[f"lstm.weight_ih_l{layer}"].T + bias
        recurrent = weights[f"lstm.weight_hh_l{layer}"].T
        state = cell = np.zeros((len(frames), self._hidden), np.float32)
        states = np.empty((*frames.shape[:2], self._hidden), np.float32)
        for time in range(frames.shape[1]):
            i, f, g, o = np.split(fed[:, time] + state @ recurrent, 4, axis=1)
            cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
            state = _sigmoid(o) * np.tanh(cell)
            states[:, time] = state
        return states


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
