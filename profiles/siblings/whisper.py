"""Whisper's trained encoder as the audio encoder: the same layers under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["audio_config", "tensors"]

_PREFIX = "thinker.audio_tower"
_NORM = {"weight": "gamma", "bias": "beta"}


def audio_config(variables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what ``audio_config`` says of an encoder's sizes, from CTranslate2's variables."""
    width, mels, _ = variables["encoder/conv1/weight"].shape
    return {
        "num_mel_bins": mels,
        "d_model": width,
        "encoder_layers": _layers(variables),
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "encoder_ffn_dim": len(variables["encoder/layer_0/ffn/linear_0/bias"]),
        "output_dim": width,
    }


def tensors(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the checkpoint's tensors of an encoder, float16, from CTranslate2's variables.

    Whisper's encoder has no projection to a language model's width: ``proj`` is the identity. Its sinusoidal positions
    are computed, so the stored ones are left out.
    """
    width = len(variables["encoder/conv1/bias"])
    found = {f"{name}.{kind}": variables[f"encoder/{name}/{kind}"] for name in ("conv1", "conv2") for kind in _NORM}
    found |= {f"ln_post.{kind}": variables[f"encoder/layer_norm/{stored}"] for kind, stored in _NORM.items()}
    found |= {"proj.weight": np.eye(width, dtype=np.float16), "proj.bias": np.zeros(width, np.float16)}
    for number in range(_layers(variables)):
        layer = _layer(variables, f"encoder/layer_{number}")
        found |= {f"layers.{number}.{name}": tensor for name, tensor in layer.items()}
    return {f"{_PREFIX}.{name}": np.ascontiguousarray(tensor, np.float16) for name, tensor in found.items()}


def _layer(variables: Mapping[str, np.ndarray], stored: str) -> dict[str, np.ndarray]:
    attention, ffn = f"{stored}/self_attention", f"{stored}/ffn"
    found: dict[str, np.ndarray] = {}
    for kind, gain in _NORM.items():
        # One matrix [3 width, width] holds queries, keys and values. Whisper has no bias for keys: CTranslate2 writes
        # zeros, and the softmax would not see another.
        q, k, v = np.split(variables[f"{attention}/linear_0/{kind}"], 3)
        found |= {f"self_attn.q_proj.{kind}": q, f"self_attn.v_proj.{kind}": v}
        found |= {f"self_attn.k_proj.{kind}": k} if kind == "weight" else {}
        found[f"self_attn.out_proj.{kind}"] = variables[f"{attention}/linear_1/{kind}"]
        found[f"self_attn_layer_norm.{kind}"] = variables[f"{attention}/layer_norm/{gain}"]
        found[f"final_layer_norm.{kind}"] = variables[f"{ffn}/layer_norm/{gain}"]
        found |= {f"fc{1 + number}.{kind}": variables[f"{ffn}/linear_{number}/{kind}"] for number in (0, 1)}
    return found


def _layers(variables: Mapping[str, np.ndarray]) -> int:
    return sum(name.startswith("encoder/layer_") and name.endswith("/ffn/linear_0/bias") for name in variables)
