"""Transformers' audio encoder as the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from omni.component import Config
from reference.original import ATTENTION, Original, as_tensor

__all__ = ["ORIGINAL"]


def _tensor_name(parameter: str) -> str:
    return f"thinker.audio_tower.{parameter}"


def _make(config: Config) -> Qwen2_5OmniAudioEncoder:
    settings = Qwen2_5OmniAudioEncoderConfig(**config["thinker_config"]["audio_config"])
    settings._attn_implementation = ATTENTION
    encoder = Qwen2_5OmniAudioEncoder(settings)
    del encoder.audio_bos_eos_token  # for the Thinker's prompt; the encoder does not read it
    return encoder


def _run(encoder: Any, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Run the clips concatenated, as transformers does; return them as rows, zero beyond each row's length."""
    features, lengths = (as_tensor(inputs[name], encoder) for name in ("input_features", "feature_lens"))
    concatenated = torch.cat([row[:, :length] for row, length in zip(features, lengths, strict=True)], 1)
    audio_lens = encoder._get_feat_extract_output_lengths(lengths)[1]
    rows = torch.zeros(len(features), int(((features.shape[2] - 1) // 2 + 1) // 2), encoder.config.output_dim)
    if audio_lens.sum():  # transformers cannot run a batch without any output
        with torch.inference_mode():
            embedded = encoder(input_features=concatenated, feature_lens=lengths).last_hidden_state
        for row, clip in zip(rows, embedded.split(audio_lens.tolist()), strict=True):
            row[: len(clip)] = clip
    return rows.numpy(), audio_lens.numpy()


ORIGINAL = Original(make=_make, tensor_name=_tensor_name, run=_run)
