"""token2wav's vocoder, BigVGAN, as a graph that ONNX Runtime's blocked convolutions take.

Every convolution has two dimensions, of height 1: ONNX Runtime lays only those out in blocks of channels (and fills up
itself what is no whole block: done here, with zeros, it gains nothing). The mean of a stage's residual blocks is a sum:
the weights of what reads it are divided by their number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import ModuleList
from torch.nn.functional import conv2d, conv_transpose2d

from components.token2wav import BIGVGAN, bigvgan_config
from export.exporter import Derived, Traced
from export.token2wav.activation import Activation, activation_tensors
from omni.checkpoint import Checkpoint

__all__ = ["TRACED"]

_KERNEL = 7  # of the first and the last convolution
_LOUDEST_DB, _RANGE_DB = 20.0, 115.0  # of a mel's decibels: what 1 stands for, and what lies between -1 and 1


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
        x = self.conv_pre(_normalized(mel)[:, :, None])
        for stage, up in enumerate(self.ups):
            x = up(x)
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


def _widths(config: dict[str, Any]) -> list[int]:
    """Channels before the first and after each upsampling."""
    return [config["upsample_initial_channel"] >> stage for stage in range(len(config["upsample_rates"]) + 1)]


def _tensor_name(parameter: str) -> str:
    """In the checkpoint, each upsampling stands in a list of its own; a weight lacks the height."""
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
            found = activation_tensors(checkpoint, f"{BIGVGAN}.{name}", gain)
            tensors |= {f"{name}.{parameter}": compute for parameter, compute in found.items()}
    for stage in range(1, len(vocoder.ups)):
        weight = f"ups.{stage}.weight"
        tensors[weight] = partial(_divided, checkpoint, _tensor_name(weight), vocoder.parallel)
    return tensors


def _divided(checkpoint: Checkpoint, tensor: str, divisor: int) -> np.ndarray:
    """Return a weight [in, out, 1, taps], divided."""
    divided = checkpoint.read(tensor).astype(np.float32)[:, :, None]
    divided /= divisor
    return divided


TRACED = Traced(lambda config, _: Vocoder(bigvgan_config(config)), _tensor_name, derived=_derived)
