"""BigVGAN's anti-aliased SnakeBeta, written for ONNX Runtime's convolutions.

Transformers upsamples by 2, applies ``u + sin(alpha u)^2 / beta`` and downsamples again. Here the even and the odd
samples of the upsampled signal are two rows of one picture and never interleave. With ``sin(a)^2 = (1 - cos(2a)) / 2``,
2 alpha and 1 / (2 beta) go into filters of each channel, and what is left between two depthwise convolutions is a
cosine. Exact but for rounding.

The activation: Lee et al. 2023, BigVGAN (arXiv 2206.04658). Its filters: Karras et al. 2021, StyleGAN3 (arXiv
2106.12423).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import conv2d
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniAntiAliasedActivation1d,
    Qwen2_5OmniSnakeBeta,
)

from omni.checkpoint import Checkpoint

__all__ = ["Activation", "activation_tensors"]

_REACH = 3  # samples that a phase of a filter sees to each side
_TAPS = 2 * _REACH + 1
_TINY = 1e-9  # transformers adds it to beta


class Activation(torch.nn.Module):
    """[batch, channels, 1, samples] -> the same.

    Parameters:
        up: [channels, 1, 2, 7]; row 1 makes the even samples, row 0 the odd ones, both times 2 alpha.
        straight: [channels, 1, 2, 7]; downsamples even and odd samples, divided by 2 alpha.
        wave: [channels, 1, 2, 7]; downsamples their cosines, times -1 / (2 beta).
        offset: [channels]; 1 / (2 beta).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("up", "straight", "wave"):
            self.register_parameter(name, torch.nn.Parameter(torch.empty(channels, 1, 2, _TAPS)))
        self.offset = torch.nn.Parameter(torch.empty(channels))
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, last = x[..., :1], x[..., -1:]
        x = torch.cat([first] * _REACH + [x] + [last] * _REACH, 3)
        # A row of zeros above and below: each of the filter's rows meets the samples once.
        phases = conv2d(x, self.up, padding=(1, 0), groups=self.channels)  # [batch, channels, 2, samples]
        first, last = phases[..., :1][:, :, :1], phases[..., -1:][:, :, 1:]  # the first even sample, the last odd one
        first, last = torch.cat([first, first], 2), torch.cat([last, last], 2)
        phases = torch.cat([first] * _REACH + [phases] + [last] * _REACH, 3)
        straight = conv2d(phases, self.straight, groups=self.channels)
        return straight + conv2d(phases.cos(), self.wave, self.offset, groups=self.channels)


def activation_tensors(checkpoint: Checkpoint, tensor: str, gain: float = 1.0) -> dict[str, Callable[[], np.ndarray]]:
    """Return the parameters of an :class:`Activation`, by name, each a function that computes it.

    Args:
        checkpoint: holds ``<tensor>.act.alpha`` and ``<tensor>.act.beta``, both logarithms, [channels].
        tensor: name of the activation.
        gain: the input is meant to be multiplied by this.
    """
    up, down = _filters()

    def frequency() -> np.ndarray:
        return 2 * np.exp(checkpoint.read(f"{tensor}.act.alpha").astype(np.float64))

    def magnitude() -> np.ndarray:
        return 0.5 / (np.exp(checkpoint.read(f"{tensor}.act.beta").astype(np.float64)) + _TINY)

    def scaled(filters: np.ndarray, by: np.ndarray) -> np.ndarray:
        return filters * by[:, None, None, None]

    return {
        "up": lambda: scaled(up, frequency() * gain),
        "straight": lambda: scaled(down, 1 / frequency()),
        "wave": lambda: scaled(down, -magnitude()),
        "offset": lambda: magnitude() * down.sum(),
    }


def _filters() -> tuple[np.ndarray, np.ndarray]:
    """Return the two phases of transformers' up- and downsampling filters, [2, 7] each.

    Of sample t, tap i of a phase meets sample t + i - 3 of the signal, or of that phase of the upsampled signal.
    """
    original = Qwen2_5OmniAntiAliasedActivation1d(Qwen2_5OmniSnakeBeta(1))
    rising, falling = (
        sampler.filter.numpy().astype(np.float64).ravel() for sampler in (original.upsample, original.downsample)
    )
    up, down = np.zeros((2, _TAPS)), np.zeros((2, _TAPS))
    up[1, :-1], up[0, 1:] = 2 * rising[11::-2], 2 * rising[10::-2]  # even samples, odd samples
    down[0, 1:], down[1, :-1] = falling[1::2], falling[0::2]
    return up, down
