"""The language model of transformers' Thinker as the reference."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

from components.thinker import DECODER
from omni.component import Config
from reference.decoder import without_weights, zero_beyond
from reference.original import ATTENTION, Original

__all__ = ["ORIGINAL"]


class _Text(torch.nn.Module):
    """Transformers' Thinker without its audio and vision encoders."""

    def __init__(self, config: Qwen2_5OmniTextConfig, tied: bool) -> None:
        super().__init__()
        self.model = Qwen2_5OmniThinkerTextModel(config)
        head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if tied:  # nothing is looked up in the table, which is the head's matrix
            self.model.embed_tokens = head
        else:
            self.lm_head = head
        self.tied = tied

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, [..., vocabulary]."""
        return (self.model.embed_tokens if self.tied else self.lm_head)(hidden)


def _make(config: Config) -> torch.nn.Module:
    section = Qwen2_5OmniTextConfig(**copy.deepcopy(config["thinker_config"]["text_config"]))
    section._attn_implementation = ATTENTION
    tied = DECODER.ties(config)
    return without_weights(lambda: _Text(section, tied), embedding=tied)


def _run(thinker: Any, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    def decode(embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = thinker.model(inputs_embeds=embeds).last_hidden_state
        return thinker.head(hidden), hidden

    return zero_beyond(decode, thinker, inputs)


ORIGINAL = Original(
    make=_make,
    tensor_name=lambda parameter: f"{DECODER.prefix}.{parameter}",
    run=_run,
)
