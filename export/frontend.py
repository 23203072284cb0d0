"""The log-mel front end as a graph.

The short-time Fourier transform is one matrix of windowed cosines and sines, applied to frames that overlap. As in
transformers' processor, a clip is followed by zeros, not by its reflection: that pads to the longest clip before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank, window_function

from components.frontend import GRAPH
from export.exporter import Exporter, Traced
from omni.component import Config
from qwen_omni_onnx.common.errors import UserError

__all__ = ["EXPORTER"]

_FLOOR = 1e-10  # of mel power
_RANGE = 8.0  # decades below the loudest bin that are kept


class LogMel(torch.nn.Module):
    """audio [batch, samples], audio_lens [batch] -> input_features [batch, 128, frames], feature_lens [batch]."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.window, self.hop = settings["n_fft"], settings["hop_length"]
        bins = self.window // 2 + 1
        self.register_buffer("fourier", torch.empty(2 * bins, 1, self.window))
        self.register_buffer("mel", torch.empty(settings["feature_size"], bins))

    def forward(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inside = torch.arange(audio.shape[1])[None] < audio_lens[:, None]
        audio = torch.nn.functional.pad(audio * inside.to(audio.dtype), (0, self.window + self.hop))
        start = audio[:, 1 : self.window // 2 + 1].flip(1)  # a reflection; a clip's end meets zeros instead
        framed = torch.nn.functional.conv1d(torch.cat([start, audio], 1)[:, None], self.fourier, stride=self.hop)
        frames = (inside.shape[1] + self.hop - 1) // self.hop
        squares = framed[:, :, :frames].square()
        power = squares[:, : self.window // 2 + 1] + squares[:, self.window // 2 + 1 :]  # real and imaginary parts
        decades = (self.mel @ power).clamp(min=_FLOOR).log10()
        loudest = decades.amax((1, 2), keepdim=True)
        return (torch.maximum(decades, loudest - _RANGE) + 4) / 4, (audio_lens + self.hop - 1) // self.hop


def _settings(config: Config) -> Mapping[str, Any]:
    settings = config["preprocessor_config"]
    if settings.get("dither"):
        raise UserError("preprocessor_config.json: dither is random; a graph that repeats itself cannot have it")
    return settings


def _constants(config: Config) -> dict[str, np.ndarray]:
    settings = _settings(config)
    window, bins = settings["n_fft"], settings["n_fft"] // 2 + 1
    angle = 2 * np.pi / window * (np.arange(bins)[:, None] * np.arange(window) % window)  # exact before it is scaled
    basis = np.concatenate([np.cos(angle), np.sin(angle)]) * window_function(window, "hann")
    rate = settings["sampling_rate"]
    filters = mel_filter_bank(bins, settings["feature_size"], 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    return {"fourier": basis[:, None].astype(np.float32), "mel": filters.T.astype(np.float32)}


EXPORTER = Exporter({GRAPH: Traced(lambda config, _: LogMel(_settings(config)), constants=_constants)})
