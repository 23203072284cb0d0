"""token2wav's diffusion transformer: from codec codes and a voice to the velocity of mel frames, as two graphs.

``Condition`` runs once an utterance, ``Step`` once an evaluation of the ODE: flow matching (Lipman et al. 2022, arXiv
2210.02747) with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) by a DiT (Peebles and Xie 2022, arXiv
2212.09748). Top to bottom, with the 7B's widths; a code is two frames, a block 24:

    codes, voice -> condition [2, batch, blocks, 24, 1024], one branch conditioned and one not
    mel [batch, blocks, 24, 80] -> input projection + condition -> 22 layers of
        h = h + gate * attention(norm(h))       norm by scale and shift of the evaluation's time; two layers look back
        h = h + gate * feed_forward(norm(h))    likewise
    -> norm -> velocity [batch, blocks, 24, 80]

It differs from transformers' own in four ways, each exact but for rounding:

- The input projection is linear: all but its mel columns is a sum that stays the same over the evaluations.
- The sampler knows its times beforehand: what follows from a time is a row of a table.
- Transformers attends over the whole clip and masks all but a frame's own block, and the block before or after in
  three of the layers: quadratic in length. Here a block's queries meet those keys only: time and memory grow linearly.
- Rotary positions count from the start of the block that asks, and pairs of channels are halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding, layer_norm, pad
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    AttentiveStatisticsPooling,
    DiTCodecEmbedding,
    DiTMLP,
    ECAPA_TimeDelayNet,
)

from components.token2wav import CONDITION, DIT, STEP, dit_config
from export.dit_weights import condition_tensors, step_tensors, table_times
from export.exporter import Traced
from omni.component import Config
from qwen_omni_onnx.token2wav.velocity import UNSEEN

__all__ = ["TRACED", "Condition", "Step"]

OWN, BEFORE, AFTER = 0, -1, 1  # a block itself, the block before it and the one after
_EPSILON = 1e-6  # of the layer normalizations


class Condition(torch.nn.Module):
    """codes [batch, codes], code_lens [batch], cond [batch, 192], ref_mel [batch, ref_frames, 80] -> two tensors.

    ``condition`` [2, batch, blocks, 24, 1024]; [1] is the unconditioned branch: a silent voice, and code 0 in every
    frame. ``key_bias`` [batch, blocks, 24] is 0 for frames of the clip and -1e9 for those beyond. ``ref_frames`` is at
    least 5.
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
        """Return the condition of each frame and the bias of each key; see the class."""
        batch, length = codes.shape
        frames = self.repeats * length
        blocks = (frames + self.block - 1) // self.block
        embed, project = self.text_embed.codec_embed, self.input_embed
        # One more row, of silence, is the unconditioned branch's: that of zeros is the same for any length.
        voice = _speaker_encoder(project["spk_encoder"], pad(ref_mel, (0, 0, 0, 0, 0, 1)))  # [batch + 1, 128]
        speaker = project["voice"](voice) + project["speaker"](pad(cond, (0, 0, 0, 1))) + project["proj"]["bias"]
        guided = project["code"](embed(codes)) + speaker[:batch].unsqueeze(1)  # [batch, codes, 1024]
        guided = guided.unsqueeze(2).expand(-1, -1, self.repeats, -1).reshape(batch, frames, self.width)
        guided = pad(guided, (0, 0, 0, blocks * self.block - frames)).reshape(batch, blocks, self.block, self.width)
        unguided = project["code"](embed(torch.zeros(1, 1, dtype=torch.int64))) + speaker[batch:].unsqueeze(1)
        condition = torch.stack([guided, unguided.unsqueeze(1).expand(batch, blocks, self.block, self.width)])
        inside = torch.arange(blocks * self.block) < self.repeats * code_lens.unsqueeze(1)
        key_bias = torch.where(inside, 0.0, UNSEEN).to(condition.dtype)
        return condition, key_bias.reshape(batch, blocks, self.block)


def _speaker_encoder(ecapa: ECAPA_TimeDelayNet, mel: torch.Tensor) -> torch.Tensor:
    """ECAPA-TDNN (Desplanques et al. 2020, arXiv 2005.07143), [rows, frames, 80] -> [rows, 128]."""
    hidden = mel.transpose(1, 2)
    layers = []
    for block in ecapa.blocks:
        hidden = block(hidden)
        layers.append(hidden)
    pooled = _statistics_pooling(ecapa.asp, ecapa.mfa(torch.cat(layers[1:], 1)))
    return ecapa.fc(pooled.unsqueeze(2)).squeeze(2)


def _statistics_pooling(asp: AttentiveStatisticsPooling, hidden: torch.Tensor) -> torch.Tensor:
    """Attentive statistics, [rows, channels, frames] -> [rows, 2 channels]: transformers' own without its mask."""
    overall = (value.unsqueeze(2).expand_as(hidden) for value in _statistics(hidden, 1 / hidden.shape[2], asp.eps))
    weights = asp.conv(asp.tanh(asp.tdnn(torch.cat([hidden, *overall], 1)))).softmax(2)
    return torch.cat(_statistics(hidden, weights, asp.eps), 1)


def _statistics(hidden: torch.Tensor, weights: torch.Tensor | float, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and standard deviation over frames, [rows, channels]."""
    mean = (weights * hidden).sum(2)
    return mean, (weights * (hidden - mean.unsqueeze(2)) ** 2).sum(2).clamp(eps).sqrt()


class Step(torch.nn.Module):
    """mel [batch, blocks, 24, 80] and what it is seen with -> velocity [batch, blocks, 24, 80] and ``present``.

    ``condition`` [branches, batch, blocks, 24, 1024] and ``key_bias`` [batch, blocks, 24] are the condition graph's;
    with only the first of the two branches there is no guidance, and the velocity is the conditioned one.
    ``evaluation`` is a row of the tables: see :class:`Modulation`. The velocity contains the guidance.

    An utterance may come in parts. ``past`` [branches, batch, layers, 2, 24, 1024] holds keys and values of the block
    before the first, of the layers that look back, and ``past_bias`` [batch, 24] is 0, or -1e9 where there is none;
    ``present`` holds the same of the block number ``present_block`` [], for the part that follows it. Keys are not
    rotated: a position counts from the block that asks.
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
        self,
        mel: torch.Tensor,
        condition: torch.Tensor,
        key_bias: torch.Tensor,
        evaluation: torch.Tensor,
        past: torch.Tensor,
        past_bias: torch.Tensor,
        present_block: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the velocity, and keys and values of a block; see the class."""
        branches, batch, blocks, block, width = condition.shape
        rows = branches * batch
        hidden = (self.input_embed["proj"](mel) + condition).reshape(rows * blocks, block, width)
        bias = torch.cat([past_bias.unsqueeze(1), key_bias], 1)  # [batch, 1 + blocks, 24]
        bias = bias.expand(branches, batch, 1 + blocks, block).reshape(rows, 1 + blocks, block)
        past, present = past.flatten(0, 1), list[torch.Tensor]()
        for layer in self.transformer_blocks:
            before = past[:, len(present)] if layer.attn.looks_back else None
            hidden, *own = layer(hidden, bias, evaluation, self.rotary, before)  # [rows * blocks, 24, 1024] each
            if layer.attn.looks_back:
                apart = (tensor.unflatten(0, (rows, blocks)) for tensor in own)
                present.append(torch.cat([tensor.index_select(1, present_block.reshape(1)) for tensor in apart], 1))
        velocity = self.proj_out(self.norm_out(hidden, evaluation)).reshape(branches, batch, blocks, block, -1)
        conditioned, unconditioned = velocity[0], velocity[-1]
        velocity = conditioned + (conditioned - unconditioned) * self.guidance_scale
        return velocity, torch.stack(present, 1).unflatten(0, (branches, batch))


class Layer(torch.nn.Module):
    """One of the transformer's blocks: hidden [rows * blocks, 24, 1024] -> hidden, keys and values."""

    def __init__(self, dit: dict[str, Any], number: int, times: int) -> None:
        super().__init__()
        width = dit["hidden_size"]
        self.attn_norm, self.ff_norm = (Modulation(times, width, gated=True) for _ in range(2))
        self.attn = Attention(dit, number)
        self.ff = DiTMLP(width, dit["ff_mult"])

    def forward(
        self,
        hidden: torch.Tensor,
        bias: torch.Tensor,
        evaluation: torch.Tensor,
        rotary: Rotary,
        past: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        attended, key, value = self.attn(self.attn_norm(hidden, evaluation), bias, rotary, past)
        hidden = hidden + self.attn_norm.gated(attended, evaluation)
        return hidden + self.ff_norm.gated(self.ff(self.ff_norm(hidden, evaluation)), evaluation), key, value


class Attention(torch.nn.Module):
    """Attention of each block to itself and, in some layers, to the block before or the block after.

    ``bias`` [rows, 1 + blocks, 24] is that of every key, the block before the first included; ``past`` [rows, 2, 24,
    1024] holds that block's keys and values, for a layer that looks back. Keys, not rotated, and values of every block
    are returned beside the result, [rows * blocks, 24, 1024] each.
    """

    def __init__(self, dit: dict[str, Any], number: int) -> None:
        super().__init__()
        width = dit["hidden_size"]
        self.heads = dit["num_attention_heads"]
        back, ahead = number in dit["look_backward_layers"], number in dit["look_ahead_layers"]
        self.looks_back = back
        self.attended = (*[BEFORE] * back, OWN, *[AFTER] * ahead)
        self.to_q, self.to_k = (Projection(width, width, bias=True) for _ in range(2))
        self.to_v = torch.nn.Linear(width, width)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(width, width)])

    def forward(
        self, hidden: torch.Tensor, bias: torch.Tensor, rotary: Rotary, past: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        all_blocks, length, width = hidden.shape
        query, own_key, own_value = rotary(self.to_q(hidden), OWN), self.to_k(hidden), self.to_v(hidden)
        past_key, past_value = (None, None) if past is None else (past[:, :1], past[:, 1:])
        rows, past_bias, bias = bias.shape[0], bias[:, :1], bias[:, 1:].flatten(0, 1)
        # Keys, values and biases of one, two or three blocks side by side, [rows * blocks, 24 to 72, ...].
        seen = partial(_shifted, rows=rows)
        key = torch.cat([rotary(seen(own_key, block, before=past_key), block) for block in self.attended], 1)
        value = torch.cat([seen(own_value, block, before=past_value) for block in self.attended], 1)
        bias = torch.cat([seen(bias, block, before=past_bias, after=UNSEEN) for block in self.attended], 1)
        query, key, value = (x.reshape(all_blocks, -1, self.heads, width // self.heads) for x in (query, key, value))
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) + bias.unsqueeze(1).unsqueeze(1)
        mixed = (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)
        return self.to_out[0](mixed.reshape(all_blocks, length, width)), own_key, own_value


def _shifted(
    hidden: torch.Tensor, block: int, *, rows: int, before: torch.Tensor | None, after: float = 0.0
) -> torch.Tensor:
    """Put in each block's place itself, or the one BEFORE or AFTER it; [rows * blocks, 24, ...] -> the same.

    ``before`` [rows, 1, 24, ...] is what is before the first block; behind the last one everything is ``after``.
    """
    if block == OWN:
        return hidden
    apart = hidden.unflatten(0, (rows, -1))
    if block == AFTER:
        return pad(apart, (0, 0) * (apart.ndim - 2) + (-1, 1), value=after).flatten(0, 1)
    assert before is not None
    return torch.cat([before, apart[:, :-1]], 1).flatten(0, 1)


class Rotary(torch.nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, arXiv 2104.09864) of head 0; the others have none.

    What counts is how far two frames are apart. Positions count from the start of the block that asks: its own frames
    are at 0 to 23, those of the block before at -24 to -1, those of the block after at 24 to 47. So three tables serve
    clips of any length.
    """

    def __init__(self, dit: dict[str, Any]) -> None:
        super().__init__()
        self.head = dit["head_dim"]
        for name in rotary_tables(dit):
            setattr(self, name, torch.nn.Buffer(torch.empty(dit["block_size"], self.head)))

    def forward(self, hidden: torch.Tensor, block: int) -> torch.Tensor:
        """Rotate queries or keys [..., 24, width] as frames of the block OWN, BEFORE or AFTER."""
        first, rest = hidden[..., : self.head], hidden[..., self.head :]
        low, high = hidden[..., : self.head // 2], hidden[..., self.head // 2 : self.head]
        rotated = first * getattr(self, f"cos{block}") + torch.cat([high, low], -1) * getattr(self, f"sin{block}")
        return torch.cat([rotated, rest], -1)


class Modulation(torch.nn.Module):
    """Adaptive layer normalization (adaLN) by an evaluation's time, [..., width] -> the same.

    Scale and shift of each normalization, and a gate for each residual branch, are a linear function of an embedding of
    the time. Rows of 1024 numbers for each time take the place of matrices [6144, 1024]. ``scale`` is one plus adaLN's:
    scale and shift are inputs of one LayerNormalization, and the graph does not pass over the activations twice more.
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


class Projection(torch.nn.Module):
    """[..., in] -> [..., out] by ``weight`` [in, out], which is derived from the checkpoint's, and ``bias`` [out]."""

    def __init__(self, into: int, out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(into, out))
        self.bias = torch.nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        product = hidden @ self.weight
        return product if self.bias is None else product + self.bias


def rotary_tables(dit: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return cosines and sines [24, head] for each block; sines of the first half are negative, as rotation wants."""
    head, length = dit["head_dim"], dit["block_size"]
    theta = Qwen2_5OmniDiTConfig(**dit).rope_parameters["rope_theta"]
    frequency = theta ** -(np.arange(0, head, 2) / head)
    tables = {}
    for block in (OWN, BEFORE, AFTER):
        angle = (np.arange(length) + block * length)[:, None] * frequency
        tables[f"cos{block}"] = np.concatenate([np.cos(angle), np.cos(angle)], 1).astype(np.float32)
        tables[f"sin{block}"] = np.concatenate([-np.sin(angle), np.sin(angle)], 1).astype(np.float32)
    return tables


def _step(config: Config, settings: Any) -> Step:
    return Step(dit_config(config), len(table_times(settings)), settings.guidance_scale)


def _step_constants(config: Config) -> dict[str, np.ndarray]:
    return {f"rotary.{name}": table for name, table in rotary_tables(dit_config(config)).items()}


def _tensor_name(parameter: str) -> str:
    return f"{DIT}.{parameter}"


TRACED: Mapping[str, Traced] = {
    CONDITION: Traced(lambda config, _: Condition(dit_config(config)), _tensor_name, derived=condition_tensors),
    STEP: Traced(_step, _tensor_name, _step_constants, step_tensors),
}
