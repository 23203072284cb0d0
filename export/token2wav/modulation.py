"""What the time of an evaluation does to the DiT (adaptive layer normalization), as tables over all times there are.

Peebles and Xie 2022, DiT (arXiv 2212.09748), adaLN: scale and shift of each normalization, and a gate for each residual
branch, are a linear function of an embedding of the time. The sampler knows its times beforehand: rows of 1024 numbers
for each of them take the place of matrices [6144, 1024].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding, layer_norm
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import SinusPositionEmbedding

from components.token2wav import DIT
from export.exporter import Derived
from omni.checkpoint import Checkpoint
from qwen_omni_onnx.sampler import evaluation_times, variants

__all__ = ["Modulation", "modulation_tables", "table_times"]

_EPSILON = 1e-6
_LAYER = ("attn_norm.shift", "attn_norm.scale", "attn_norm.gate", "ff_norm.shift", "ff_norm.scale", "ff_norm.gate")
_LAST = ("norm_out.scale", "norm_out.shift")  # here the scale comes first


def table_times(settings: Any) -> np.ndarray:
    """Return the time of each row of the tables, [rows] float32, from the ``export`` block of ``params.yaml``."""
    declared = variants({name: variant.model_dump() for name, variant in settings.variants.items()})
    return evaluation_times(declared.values())


class Modulation(torch.nn.Module):
    """LayerNorm by scale and shift of an evaluation's time, [..., width] -> the same; ``scale`` is one plus adaLN's.

    Both are inputs of one LayerNormalization: the graph does not pass over the activations twice more.
    """

    def __init__(self, times: int, width: int, *, gated: bool) -> None:
        super().__init__()
        self.scale, self.shift = (torch.nn.Parameter(torch.empty(times, width)) for _ in range(2))
        self.gate = torch.nn.Parameter(torch.empty(times, width)) if gated else None

    def forward(self, hidden: torch.Tensor, evaluation: torch.Tensor) -> torch.Tensor:
        scale, shift = embedding(evaluation, self.scale), embedding(evaluation, self.shift)
        return layer_norm(hidden, hidden.shape[-1:], scale, shift, _EPSILON)

    def gated(self, branch: torch.Tensor, evaluation: torch.Tensor) -> torch.Tensor:
        """Weigh a residual branch, [..., width] -> the same."""
        assert self.gate is not None
        return branch * embedding(evaluation, self.gate)


def modulation_tables(checkpoint: Checkpoint, times: np.ndarray, layers: int) -> Derived:
    """Return how to compute the tables of every ``Modulation``, by parameter name, each [times, width].

    The vectors of a layer come from one matrix, which is read once if its tables are written one after another.
    """

    @lru_cache(maxsize=1)
    def embedded() -> np.ndarray:
        return _silu(_embedded(checkpoint, times))

    @lru_cache(maxsize=1)
    def chunks(linear: str, number: int) -> list[np.ndarray]:
        return np.split(_linear(checkpoint, linear, embedded()), number, axis=1)

    def table(linear: str, names: tuple[str, ...], name: str) -> np.ndarray:
        values = chunks(linear, len(names))[names.index(name)]
        return values + 1 if name.endswith(".scale") else values

    tables: dict[str, Callable[[], np.ndarray]] = {
        name: partial(table, "norm_out.linear", _LAST, name) for name in _LAST
    }
    for layer in (f"transformer_blocks.{number}" for number in range(layers)):
        linear = f"{layer}.attn_norm.linear"
        tables |= {f"{layer}.{name}": partial(table, linear, _LAYER, name) for name in _LAYER}
    return tables


def _embedded(checkpoint: Checkpoint, times: np.ndarray) -> np.ndarray:
    """Return transformers' embedding of the times, [times, width].

    Sines and cosines of up to 1000 radians depend on how the angles are rounded: those are transformers' own.
    """
    features = checkpoint.spec(f"{DIT}.time_embed.time_mlp.0.weight").shape[1]
    hidden = SinusPositionEmbedding(features)(torch.from_numpy(times)).numpy()
    hidden = _silu(_linear(checkpoint, "time_embed.time_mlp.0", hidden))
    return _linear(checkpoint, "time_embed.time_mlp.2", hidden)


def _linear(checkpoint: Checkpoint, name: str, hidden: np.ndarray) -> np.ndarray:
    """In float64, so that neither threads nor libraries round the result differently."""
    weight, bias = (checkpoint.read(f"{DIT}.{name}.{kind}").astype(np.float64) for kind in ("weight", "bias"))
    return hidden.astype(np.float64) @ weight.T + bias


def _silu(hidden: np.ndarray) -> np.ndarray:
    return hidden / (1 + np.exp(-hidden))
