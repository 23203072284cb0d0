"""Transformers' own decoders, to compare with: built without memory for weights, and run on rows of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniRotaryEmbedding

from reference.original import as_array, as_tensor

__all__ = ["without_weights", "zero_beyond"]


def without_weights(build: Callable[[], torch.nn.Module], *, embedding: bool = False) -> torch.nn.Module:
    """Return ``build()``, a module with the decoder as ``model``, its parameters still to be loaded.

    Random parameters that are then replaced would cost gigabytes, and the time to draw them. The embedding table is
    left out, unless the head reads it: a decoder is fed embeddings.

    Args:
        build: Builds the module.
        embedding: Whether to leave the embedding table in.
    """
    with torch.device("meta"):
        module = build()
    if not embedding:
        del module.model.embed_tokens
    module.model.rotary_emb = Qwen2_5OmniRotaryEmbedding(config=module.model.config)  # computed, not loaded
    return module


def zero_beyond(
    decode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    module: torch.nn.Module,
    fed: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Run a decoder on rows padded on the right; return logits and hidden states, zero beyond the length of a row.

    Padding needs no mask there: no token looks ahead.

    Args:
        decode: Maps embeddings [batch, seq, width] to logits and hidden states.
        module: The module whose dtype the embeddings get.
        fed: ``inputs_embeds`` [batch, seq, width] and ``tokens`` [batch], the lengths of the rows.
    """
    with torch.inference_mode():
        results = decode(as_tensor(fed["inputs_embeds"], module))
    inside = np.arange(fed["inputs_embeds"].shape[1]) < fed["tokens"][:, None]
    logits, hidden = (np.where(inside[..., None], as_array(result), np.float32(0)) for result in results)
    return logits, hidden
