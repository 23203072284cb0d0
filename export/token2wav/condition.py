"""What the DiT is told beside the mel frames: codes and voice, once an utterance.

Transformers projects mel, voice, codes and speaker together, anew at every evaluation of the ODE. The projection is
linear: everything but its mel columns is a sum that does not change. Its second branch, of classifier-free guidance,
hears a silent voice and code 0 in every frame.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    AttentiveStatisticsPooling,
    DiTCodecEmbedding,
    ECAPA_TimeDelayNet,
)

from components.token2wav import DIT, dit_config
from export.exporter import Derived, Traced
from export.token2wav.layers import Projection, input_columns
from omni.checkpoint import Checkpoint
from omni.component import Config

__all__ = ["TRACED", "UNSEEN", "Condition"]

UNSEEN = -1e9  # added to a score: its softmax is 0, and a row of nothing else is no NaN


class Condition(torch.nn.Module):
    """codes [batch, codes], code_lens [batch], cond [batch, 192], ref_mel [batch, ref_frames, 80] -> what frames hear.

    Returns ``condition`` [2, batch, blocks, 24, 1024], of which [1] is the unconditioned branch, and ``key_bias``
    [batch, blocks, 24]: 0 for frames of the clip, -1e9 for those beyond. ``ref_frames`` is at least 5.
    """

    def __init__(self, dit: dict[str, Any]) -> None:
        super().__init__()
        width = dit["hidden_size"]
        self.repeats, self.block, self.width = dit["repeats"], dit["block_size"], width
        self.text_embed = DiTCodecEmbedding(dit["num_embeds"], dit["emb_dim"], dit["repeats"])
        self.input_embed = torch.nn.ModuleDict(
            {
                "spk_encoder": ECAPA_TimeDelayNet(Qwen2_5OmniDiTConfig(**dit)),
                "voice": Projection(dit["enc_dim"], width),
                "code": Projection(dit["emb_dim"], width),
                "speaker": Projection(dit["enc_emb_dim"], width),
                "proj": torch.nn.ParameterDict({"bias": torch.nn.Parameter(torch.empty(width))}),
            }
        )

    def forward(
        self, codes: torch.Tensor, code_lens: torch.Tensor, cond: torch.Tensor, ref_mel: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length = codes.shape
        frames = self.repeats * length
        blocks = (frames + self.block - 1) // self.block
        embed, project = self.text_embed.codec_embed, self.input_embed
        # one more row, of silence, is the unconditioned branch's: that of zeros is the same for any length
        heard = _hear(project["spk_encoder"], pad(ref_mel, (0, 0, 0, 0, 0, 1)))
        spoken = project["voice"](heard) + project["speaker"](pad(cond, (0, 0, 0, 1))) + project["proj"]["bias"]
        told = project["code"](embed(codes)) + spoken[:batch].unsqueeze(1)
        told = told.unsqueeze(2).expand(-1, -1, self.repeats, -1).reshape(batch, frames, self.width)
        told = pad(told, (0, 0, 0, blocks * self.block - frames)).reshape(batch, blocks, self.block, self.width)
        untold = project["code"](embed(torch.zeros(1, 1, dtype=torch.int64))) + spoken[batch:].unsqueeze(1)
        condition = torch.stack([told, untold.unsqueeze(1).expand(batch, blocks, self.block, self.width)])
        inside = torch.arange(blocks * self.block) < self.repeats * code_lens.unsqueeze(1)
        key_bias = torch.where(inside, 0.0, UNSEEN).to(condition.dtype)
        return condition, key_bias.reshape(batch, blocks, self.block)


def _hear(ecapa: ECAPA_TimeDelayNet, mel: torch.Tensor) -> torch.Tensor:
    """Speaker encoder, ECAPA-TDNN (Desplanques et al. 2020, arXiv 2005.07143), [rows, frames, 80] -> [rows, 128]."""
    hidden = mel.transpose(1, 2)
    layers = []
    for block in ecapa.blocks:
        hidden = block(hidden)
        layers.append(hidden)
    pooled = _pool(ecapa.asp, ecapa.mfa(torch.cat(layers[1:], 1)))
    return ecapa.fc(pooled.unsqueeze(2)).squeeze(2)


def _pool(asp: AttentiveStatisticsPooling, hidden: torch.Tensor) -> torch.Tensor:
    """Attentive statistics, [rows, channels, frames] -> [rows, 2 channels]: transformers' own without its mask."""
    overall = (value.unsqueeze(2).expand_as(hidden) for value in _statistics(hidden, 1 / hidden.shape[2], asp.eps))
    share = asp.conv(asp.tanh(asp.tdnn(torch.cat([hidden, *overall], 1)))).softmax(2)
    return torch.cat(_statistics(hidden, share, asp.eps), 1)


def _statistics(hidden: torch.Tensor, share: torch.Tensor | float, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over frames that have a share each, [rows, channels]."""
    mean = (share * hidden).sum(2)
    return mean, (share * (hidden - mean.unsqueeze(2)) ** 2).sum(2).clamp(eps).sqrt()


def _derived(checkpoint: Checkpoint, settings: Any) -> Derived:
    dit = dit_config(checkpoint.config)
    parts = ("voice", "code", "speaker")
    return {f"input_embed.{part}.weight": partial(input_columns, checkpoint, dit, part) for part in parts}


def _build(config: Config, settings: Any) -> Condition:
    return Condition(dit_config(config))


TRACED = Traced(_build, lambda parameter: f"{DIT}.{parameter}", derived=_derived)
