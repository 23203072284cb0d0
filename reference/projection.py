"""The first and the last linear layer of transformers' Talker, one after the other, as the reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from transformers import Qwen2_5OmniTalkerForConditionalGeneration
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTalkerConfig

from omni.component import Config
from reference.original import Original, as_array, as_tensor

__all__ = ["ORIGINAL"]


def _make(config: Config) -> torch.nn.Sequential:
    """Return the Talker's projection followed by its codec head; no decoder layers are built."""
    no_layers = {"num_hidden_layers": 0, "layer_types": None}  # transformers 5 writes a type for each
    talker = Qwen2_5OmniTalkerForConditionalGeneration(
        Qwen2_5OmniTalkerConfig(**{**config["talker_config"], **no_layers})
    )
    ends = OrderedDict(thinker_to_talker_proj=talker.thinker_to_talker_proj, codec_head=talker.codec_head)
    return torch.nn.Sequential(ends)


def _run(ends: torch.nn.Sequential, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    with torch.inference_mode():
        return (as_array(ends(as_tensor(inputs["hidden_states"], ends))),)


ORIGINAL = Original(make=_make, tensor_name=lambda parameter: f"talker.{parameter}", run=_run)
