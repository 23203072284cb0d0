"""One evaluation of the ODE's velocity by the DiT, over blocks of frames.

Transformers attends over the whole clip and masks all but a frame's own block, and the block before or after in three
of the layers: quadratic in length. Here a block's queries meet those keys only, so that time and memory grow linearly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import DiTMLP

from components.token2wav import DIT, dit_config
from export.exporter import Derived, Traced
from export.token2wav.condition import UNSEEN
from export.token2wav.layers import Projection, input_columns
from export.token2wav.modulation import Modulation, modulation_tables, table_times
from export.token2wav.rotary import AFTER, BEFORE, OWN, Rotary, deinterleaved, rotary_constants
from omni.checkpoint import Checkpoint
from omni.component import Config

__all__ = ["TRACED", "Step"]


class Step(torch.nn.Module):
    """mel [batch, blocks, 24, 80], condition, key_bias, evaluation [] -> velocity, guidance [batch, blocks, 24, 80].

    ``condition`` [branches, batch, blocks, 24, 1024] and ``key_bias`` [batch, blocks, 24] are the condition graph's;
    with only the first of the two branches there is no guidance: it is 0, and the velocity the conditioned one.
    ``evaluation`` is a row of the tables: see ``export.token2wav.modulation``. The velocity contains the guidance.
    """

    def __init__(self, dit: dict[str, Any], times: int, guidance_scale: float) -> None:
        super().__init__()
        width = dit["hidden_size"]
        self.guidance_scale = guidance_scale
        self.input_embed = torch.nn.ModuleDict({"proj": Projection(dit["mel_dim"], width)})
        self.rotary = Rotary(dit)
        self.transformer_blocks = torch.nn.ModuleList(
            Layer(dit, number, times) for number in range(dit["num_hidden_layers"])
        )
        self.norm_out = Modulation(times, width, gated=False)
        self.proj_out = torch.nn.Linear(width, dit["mel_dim"])

    def forward(
        self, mel: torch.Tensor, condition: torch.Tensor, key_bias: torch.Tensor, evaluation: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        branches, batch, blocks, block, width = condition.shape
        hidden = (self.input_embed["proj"](mel) + condition).reshape(branches * batch * blocks, block, width)
        key_bias = key_bias.expand(branches, batch, blocks, block).reshape(branches * batch, blocks, block)
        for layer in self.transformer_blocks:
            hidden = layer(hidden, key_bias, evaluation, self.rotary)
        velocity = self.proj_out(self.norm_out(hidden, evaluation)).reshape(branches, batch, blocks, block, -1)
        conditioned, unconditioned = velocity[0], velocity[-1]
        guidance = (conditioned - unconditioned) * self.guidance_scale
        return conditioned + guidance, guidance


class Layer(torch.nn.Module):
    """One of the transformer's blocks: hidden [rows * blocks, 24, 1024], key_bias [rows, blocks, 24] -> hidden."""

    def __init__(self, dit: dict[str, Any], number: int, times: int) -> None:
        super().__init__()
        width = dit["hidden_size"]
        self.attn_norm, self.ff_norm = (Modulation(times, width, gated=True) for _ in range(2))
        self.attn = Attention(dit, number)
        self.ff = DiTMLP(width, dit["ff_mult"])

    def forward(
        self, hidden: torch.Tensor, key_bias: torch.Tensor, evaluation: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        attended = self.attn(self.attn_norm(hidden, evaluation), key_bias, rotary)
        hidden = hidden + self.attn_norm.gated(attended, evaluation)
        return hidden + self.ff_norm.gated(self.ff(self.ff_norm(hidden, evaluation)), evaluation)


class Attention(torch.nn.Module):
    """Attention of each block to itself and, in some layers, to the block before or the block after."""

    def __init__(self, dit: dict[str, Any], number: int) -> None:
        super().__init__()
        width = dit["hidden_size"]
        self.heads = dit["num_attention_heads"]
        back, ahead = number in dit["look_backward_layers"], number in dit["look_ahead_layers"]
        self.seen = (*[BEFORE] * back, OWN, *[AFTER] * ahead)
        self.to_q, self.to_k = (Projection(width, width, bias=True) for _ in range(2))
        self.to_v = torch.nn.Linear(width, width)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(width, width)])

    def forward(self, hidden: torch.Tensor, key_bias: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        all_blocks, block, width = hidden.shape
        rows = key_bias.shape[0]
        query, key, value = rotary(self.to_q(hidden), OWN), self.to_k(hidden), self.to_v(hidden)
        key = torch.cat([_at(which, rotary(key, which), rows, 0.0) for which in self.seen], 1)
        value = torch.cat([_at(which, value, rows, 0.0) for which in self.seen], 1)
        bias = torch.cat([_at(which, key_bias.flatten(0, 1), rows, UNSEEN) for which in self.seen], 1)
        query, key, value = (x.reshape(all_blocks, -1, self.heads, width // self.heads) for x in (query, key, value))
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) + bias.unsqueeze(1).unsqueeze(1)
        mixed = (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)
        return self.to_out[0](mixed.reshape(all_blocks, block, width))


def _at(which: int, hidden: torch.Tensor, rows: int, outside: float) -> torch.Tensor:
    """Put in each block's place itself, or the one BEFORE or AFTER it; [rows * blocks, 24, ...] -> the same."""
    if which == OWN:
        return hidden
    apart = hidden.unflatten(0, (rows, -1))
    shift = (1, -1) if which == BEFORE else (-1, 1)
    return pad(apart, (0, 0) * (apart.ndim - 2) + shift, value=outside).flatten(0, 1)


def _build(config: Config, settings: Any) -> Step:
    return Step(dit_config(config), len(table_times(settings)), settings.guidance_scale)


def _constants(config: Config) -> dict[str, np.ndarray]:
    return {f"rotary.{name}": table for name, table in rotary_constants(dit_config(config)).items()}


def _derived(checkpoint: Checkpoint, settings: Any) -> Derived:
    dit = dit_config(checkpoint.config)
    layers, head = dit["num_hidden_layers"], dit["head_dim"]
    made: dict[str, Callable[[], np.ndarray]] = dict(modulation_tables(checkpoint, table_times(settings), layers))
    made["input_embed.proj.weight"] = partial(input_columns, checkpoint, dit, "mel")
    for layer in range(layers):
        for name, scale in (("to_q", head**-0.5), ("to_k", 1.0)):  # attention's scale is in the queries
            for kind in ("weight", "bias"):
                parameter = f"transformer_blocks.{layer}.attn.{name}.{kind}"
                made[parameter] = partial(_rotated_rows, checkpoint, parameter, head, scale)
    return made


def _rotated_rows(checkpoint: Checkpoint, parameter: str, head: int, scale: float) -> np.ndarray:
    """Return a projection of queries or keys as ``Projection`` wants it, scaled and in the order of ``Rotary``."""
    rows = checkpoint.read(f"{DIT}.{parameter}").astype(np.float32) * np.float32(scale)
    return np.ascontiguousarray(deinterleaved(rows, head).T)


TRACED = Traced(_build, lambda parameter: f"{DIT}.{parameter}", _constants, _derived)
