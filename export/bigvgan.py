"""token2wav's vocoder, BigVGAN (Lee et al. 2022, arXiv 2206.04658), for ONNX Runtime's blocked convolutions.

    mel [batch, 80, frames] -> convolution -> 6 stages, which upsample by 5, 3, 2, 2, 2, 2 and halve the channels:
        x = upsampling(x)
        x = sum of three residual blocks, of kernels 3, 7 and 11
    -> activation -> convolution -> waveform [batch, 240 * frames]

It differs from transformers' own in three ways, each exact but for rounding:

- Every convolution has two dimensions, of height 1: ONNX Runtime lays only those out in blocks of channels (and
  fills up itself what is no whole block: done here, with zeros, it gains nothing).
- The mean of a stage's residual blocks is a sum: the weights of what reads it are divided by their number.
- The anti-aliased activation is three depthwise convolutions and a cosine: see :class:`Activation`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import ModuleList
from torch.nn.functional import conv2d, conv_transpose2d
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniAntiAliasedActivation1d,
    Qwen2_5OmniSnakeBeta,
)

from components.token2wav import BIGVGAN, VOCODER, bigvgan_config
from export.exporter import Derived, Traced
from omni.checkpoint import Checkpoint

__all__ = ["TRACED", "Activation", "Vocoder", "activation_tensors"]

_KERNEL = 7  # of the first and the last convolution
_LOUDEST_DB, _RANGE_DB = 20.0, 115.0  # of a mel's decibels: what 1 stands for, and what lies between -1 and 1
_REACH = 3  # samples that a phase of a filter sees to each side
_TAPS = 2 * _REACH + 1
_TINY = 1e-9  # transformers adds it to beta


class Vocoder(torch.nn.Module):
    """mel [batch, 80, frames], natural logarithms of amplitudes -> waveform [batch, 240 * frames] in [-1, 1]."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths = _widths(config)
        sizes, rates = config["upsample_kernel_sizes"], config["upsample_rates"]
        blocks = list(zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True))
        self.conv_pre = Convolution(config["mel_dim"], widths[0], _KERNEL)
        self.ups = ModuleList(
            Upsampling(into, out, size, rate)
            for (into, out), size, rate in zip(pairwise(widths), sizes, rates, strict=True)
        )
        self.resblocks = ModuleList(ResidualBlock(width, *block) for width in widths[1:] for block in blocks)
        self.activation_post = Activation(widths[-1])
        self.conv_post = Convolution(widths[-1], 1, _KERNEL, bias=False)
        self.parallel = len(blocks)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Return the waveform of mel frames; shapes as of the 7B."""
        x = self.conv_pre(_normalized(mel)[:, :, None])  # [batch, 1536, 1, frames]
        for stage, up in enumerate(self.ups):
            x = up(x)  # [batch, 768, 1, 5 * frames], in the end [batch, 24, 1, 240 * frames]
            first, *others = self.resblocks[stage * self.parallel : (stage + 1) * self.parallel]
            total = first(x)
            for block in others:
                total = total + block(x)
            x = total  # what reads it divides by the number of blocks
        return self.conv_post(self.activation_post(x)).clamp(-1, 1)[:, 0, 0]


def _normalized(mel: torch.Tensor) -> torch.Tensor:
    """Map decibels of a mel's amplitudes, -135 to -20 and 115 in range, to [-1, 1], as transformers does.

    It takes the logarithm of an exponential, which is linear, and clamps amplitudes from below at -115 dB: that lies at
    -1.35 here, where the last clamp cuts anyway.
    """
    decibels = mel * (20 / math.log(10)) - _LOUDEST_DB
    return (2 * (decibels + _RANGE_DB) / _RANGE_DB - 1).clamp(-1, 1)


class Convolution(torch.nn.Module):
    """[batch, in, 1, samples] -> [batch, out, 1, samples]."""

    def __init__(self, into: int, out: int, kernel: int, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(out, into, 1, kernel))
        self.bias = torch.nn.Parameter(torch.empty(out)) if bias else None
        self.dilation, self.padding = dilation, dilation * (kernel - 1) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv2d(x, self.weight, self.bias, padding=(0, self.padding), dilation=(1, self.dilation))


class Upsampling(torch.nn.Module):
    """[batch, in, 1, samples] -> [batch, out, 1, rate * samples]."""

    def __init__(self, into: int, out: int, kernel: int, rate: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(into, out, 1, kernel))
        self.bias = torch.nn.Parameter(torch.empty(out))
        self.rate, self.padding = rate, (kernel - rate) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_transpose2d(x, self.weight, self.bias, stride=(1, self.rate), padding=(0, self.padding))


class ResidualBlock(torch.nn.Module):
    """[batch, channels, 1, samples] -> the same, by pairs of convolutions, each behind its activation."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs1 = ModuleList(Convolution(channels, channels, kernel, dilation) for dilation in dilations)
        self.convs2 = ModuleList(Convolution(channels, channels, kernel) for _ in dilations)
        self.activations = ModuleList(Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, (dilated, plain) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            before, between = self.activations[2 * number], self.activations[2 * number + 1]
            x = x + plain(between(dilated(before(x))))
        return x


class Activation(torch.nn.Module):
    """Anti-aliased SnakeBeta, [batch, channels, 1, samples] -> the same.

    Transformers upsamples by 2, applies ``u + sin(alpha u)^2 / beta`` and downsamples again, by the filters of
    StyleGAN3 (Karras et al. 2021, arXiv 2106.12423). Here the even and the odd samples of the upsampled signal are two
    rows of one picture and never interleave. With ``sin(a)^2 = (1 - cos(2a)) / 2``, 2 alpha and 1 / (2 beta) go into
    filters of each channel, and what is left between two depthwise convolutions is a cosine.

    Attributes:
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
        """Activate a signal, beyond whose ends its first and last samples go on."""
        first, last = x[..., :1], x[..., -1:]
        x = torch.cat([first] * _REACH + [x] + [last] * _REACH, 3)
        # A row of zeros above and below: each of the filter's rows meets the samples once.
        phases = conv2d(x, self.up, padding=(1, 0), groups=self.channels)  # [batch, channels, 2, samples]
        first, last = phases[..., :1][:, :, :1], phases[..., -1:][:, :, 1:]  # the first even sample, the last odd one
        first, last = torch.cat([first, first], 2), torch.cat([last, last], 2)
        phases = torch.cat([first] * _REACH + [phases] + [last] * _REACH, 3)
        straight = conv2d(phases, self.straight, groups=self.channels)
        return straight + conv2d(phases.cos(), self.wave, self.offset, groups=self.channels)


def _widths(config: dict[str, Any]) -> list[int]:
    """Return the channels before the first and after each upsampling."""
    return [config["upsample_initial_channel"] >> stage for stage in range(len(config["upsample_rates"]) + 1)]


def _tensor_name(parameter: str) -> str:
    """Return a parameter's name in the checkpoint, where each upsampling stands in a list of its own."""
    return f"{BIGVGAN}." + re.sub(r"^ups\.(\d+)", r"ups.\1.0", parameter)


def _derived(checkpoint: Checkpoint, settings: Any) -> Derived:
    """Return the parameters of activations, and the weights that read a sum where transformers has a mean."""
    config = bigvgan_config(checkpoint.config)
    with torch.device("meta"):
        vocoder = Vocoder(config)
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for name, module in vocoder.named_modules():
        if isinstance(module, Activation):
            gain = 1 / vocoder.parallel if module is vocoder.activation_post else 1.0
            parameters = activation_tensors(checkpoint, f"{BIGVGAN}.{name}", gain)
            tensors |= {f"{name}.{parameter}": compute for parameter, compute in parameters.items()}
    for stage in range(1, len(vocoder.ups)):
        weight = f"ups.{stage}.weight"
        tensors[weight] = partial(_divided, checkpoint, _tensor_name(weight), vocoder.parallel)
    return tensors


def _divided(checkpoint: Checkpoint, tensor: str, divisor: int) -> np.ndarray:
    """Return a weight [in, out, 1, taps], divided."""
    divided = checkpoint.read(tensor).astype(np.float32)[:, :, None]
    divided /= divisor
    return divided


def activation_tensors(checkpoint: Checkpoint, tensor: str, gain: float = 1.0) -> dict[str, Callable[[], np.ndarray]]:
    """Return the parameters of an :class:`Activation`, by name, each a function that computes it.

    Args:
        checkpoint: Checkpoint that holds ``<tensor>.act.alpha`` and ``<tensor>.act.beta``, both logarithms, [channels].
        tensor: Name of the activation in the checkpoint.
        gain: Factor that the activation's input still has to be multiplied by.
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


TRACED: Mapping[str, Traced] = {
    VOCODER: Traced(lambda config, _: Vocoder(bigvgan_config(config)), _tensor_name, derived=_derived)
}
