"""Transformers' processor as the reference of the log-mel front end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from transformers import Qwen2_5OmniProcessor, WhisperFeatureExtractor

from omni.component import Config
from reference.original import Original

__all__ = ["ORIGINAL"]


def _make(config: Config) -> Qwen2_5OmniProcessor:
    """Return transformers' processor with its audio feature extractor only: images would need more libraries."""
    processor = Qwen2_5OmniProcessor.__new__(Qwen2_5OmniProcessor)
    known = WhisperFeatureExtractor().to_dict()
    processor.feature_extractor = WhisperFeatureExtractor(
        **{key: value for key, value in config["preprocessor_config"].items() if key in known}
    )
    processor.audio_token = ""
    return processor


def _run(processor: Qwen2_5OmniProcessor, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    clips = [row[:length] for row, length in zip(inputs["audio"], inputs["audio_lens"], strict=True)]
    settings = {**Qwen2_5OmniProcessor.audio_kwargs, "return_tensors": "np"}
    features, _ = processor._process_audio(clips, **settings)
    lengths = features["feature_attention_mask"].sum(-1).astype(np.int64)
    frames = -(-inputs["audio"].shape[1] // processor.feature_extractor.hop_length)
    return np.ascontiguousarray(features["input_features"][:, :, :frames]), lengths


ORIGINAL = Original(make=_make, run=_run)
