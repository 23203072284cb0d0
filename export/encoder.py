"""The audio encoder as a graph over blocks.

Transformers cuts a batch into a list of clips and these into blocks, by lengths that are values: no graph can be traced
from that. Here all blocks are one dense batch. Whatever lies beyond a clip is masked where it would be seen: before and
after the first convolution, among the keys of attention, and in the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import gelu, pad
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder, SinusoidsPositionEmbedding

from components.encoder import GRAPH
from export.exporter import Exporter, Traced
from omni.component import Config

__all__ = ["EXPORTER"]

_UNSEEN = -1e9  # added to a score: its softmax is 0, and a row of nothing else is no NaN


class BlockEncoder(torch.nn.Module):
    """input_features [batch, mels, frames], feature_lens -> audio_features [batch, tokens, width], audio_lens."""

    def __init__(self, original: Qwen2_5OmniAudioEncoder) -> None:
        super().__init__()
        self.conv1, self.conv2, self.layers = original.conv1, original.conv2, original.layers
        self.ln_post, self.proj = original.ln_post, original.proj
        self.positions = torch.nn.Buffer(torch.empty(original.n_window, original.config.d_model))
        self.block = 2 * original.n_window

    def forward(self, input_features: torch.Tensor, feature_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, mels, frames = input_features.shape
        blocks = (frames + self.block - 1) // self.block
        cut = pad(input_features, (0, blocks * self.block - frames)).view(batch, mels, blocks, self.block)
        cut = cut.permute(0, 2, 1, 3).reshape(batch * blocks, mels, self.block)
        starts = torch.arange(blocks) * self.block
        inside = (feature_lens[:, None] - starts).clamp(0, self.block).reshape(batch * blocks)
        audible = (torch.arange(self.block) < inside[:, None]).to(cut.dtype)[:, None]
        hidden = gelu(self.conv1(cut * audible)) * audible
        hidden = gelu(self.conv2(hidden)).transpose(1, 2) + self.positions
        attended = torch.arange(self.block // 2) < ((inside + 1) // 2)[:, None]
        bias = torch.where(attended, 0.0, _UNSEEN).to(hidden.dtype)[:, None, None]
        for layer in self.layers:
            hidden = hidden + _attend(layer.self_attn, layer.self_attn_layer_norm(hidden), bias)
            hidden = hidden + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(hidden))))
        pooled = hidden.reshape(batch * blocks, self.block // 4, 2, -1).mean(2)
        embedded = self.proj(self.ln_post(pooled)).reshape(batch, blocks * (self.block // 4), -1)
        tokens = ((frames - 1) // 2 + 1) // 2
        audio_lens = ((feature_lens - 1) // 2 + 1) // 2
        valid = torch.arange(tokens) < audio_lens[:, None]
        return embedded[:, :tokens] * valid.to(embedded.dtype)[..., None], audio_lens


def _attend(attention: torch.nn.Module, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention within each block; [blocks, 100, width] -> the same."""
    blocks, length, _ = hidden.shape
    query, key, value = (
        project(hidden).view(blocks, length, attention.num_heads, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = query @ key.transpose(2, 3) * attention.scaling + bias
    return attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(blocks, length, -1))


def _tensor_name(parameter: str) -> str:
    return f"thinker.audio_tower.{parameter}"


def _build(config: Config, settings: Any) -> BlockEncoder:
    audio = Qwen2_5OmniAudioEncoderConfig(**config["thinker_config"]["audio_config"])
    return BlockEncoder(Qwen2_5OmniAudioEncoder(audio))


def _constants(config: Config) -> dict[str, np.ndarray]:
    audio = config["thinker_config"]["audio_config"]
    return {"positions": SinusoidsPositionEmbedding(audio["n_window"], audio["d_model"]).positional_embedding.numpy()}


EXPORTER = Exporter({GRAPH: Traced(_build, _tensor_name, _constants)})
