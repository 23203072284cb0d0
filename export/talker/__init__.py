"""The Talker: its graph, constructed, and transformers' own beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5OmniTalkerForConditionalGeneration
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTalkerConfig

from components.talker import DECODER
from export.decoder import constructed
from export.decoder.reference import without_weights, zero_beyond
from export.exporter import ATTENTION, Exporter
from omni.component import Config

__all__ = ["EXPORTER"]


def _original(config: Config) -> torch.nn.Module:
    section = Qwen2_5OmniTalkerConfig(**copy.deepcopy(config["talker_config"]))  # which changes what it is given
    section._attn_implementation = ATTENTION
    return without_weights(lambda: Qwen2_5OmniTalkerForConditionalGeneration(section))


def _run(talker: Any, fed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    def decode(embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = talker.model(inputs_embeds=talker.thinker_to_talker_proj(embeds)).last_hidden_state
        return talker.codec_head(hidden), hidden

    return zero_beyond(decode, talker, fed)


EXPORTER = Exporter(
    graphs={DECODER.graph: constructed(DECODER)},
    original=_original,
    tensor_name=lambda parameter: f"{DECODER.prefix}.{parameter}",
    run=_run,
)
