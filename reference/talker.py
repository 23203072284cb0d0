"""Transformers' Talker as the reference."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5OmniTalkerForConditionalGeneration
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTalkerConfig

from components.talker import DECODER
from omni.component import Config
from reference.decoder import without_weights, zero_beyond
from reference.original import ATTENTION, Original

__all__ = ["ORIGINAL"]


def _make(config: Config) -> torch.nn.Module:
    section = Qwen2_5OmniTalkerConfig(**copy.deepcopy(config["talker_config"]))  # it modifies its arguments
    section._attn_implementation = ATTENTION
    return without_weights(lambda: Qwen2_5OmniTalkerForConditionalGeneration(section))


def _run(talker: Any, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    def decode(embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = talker.model(inputs_embeds=talker.thinker_to_talker_proj(embeds)).last_hidden_state
        return talker.codec_head(hidden), hidden

    return zero_beyond(decode, talker, inputs)


ORIGINAL = Original(
    make=_make,
    tensor_name=lambda parameter: f"{DECODER.prefix}.{parameter}",
    run=_run,
)
