"""Transformers' decoders as references: built without memory for weights, and run on rows of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniRotaryEmbedding

from reference.original import as_array, as_tensor

__all__ = ["without_weights", "zero_beyond"]


def without_weights(build: Callable[[], torch.nn.Module], *, embedding: bool = False) -> torch.nn.Module:
    """Return the module that ``build`` builds, with the decoder as ``model``, on the device ``meta``.

    Initial random parameters, which the checkpoint's replace, would cost gigabytes of memory and time. The embedding
    table is removed unless the head shares it: the decoder's input is embeddings.

    Args:
        build: Builds the module.
        embedding: Whether the module needs its embedding table.
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
    inputs: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Run a decoder on rows padded on the right; return logits and hidden states, zero beyond each row's length.

    Padding on the right needs no mask: attention is causal.

    Args:
        decode: Maps embeddings [batch, seq, width] to logits and hidden states.
        module: Module to whose dtype the embeddings are cast.
        inputs: ``inputs_embeds`` [batch, seq, width] and ``tokens`` [batch], the lengths of the rows.
    """
    with torch.inference_mode():
        results = decode(as_tensor(inputs["inputs_embeds"], module))
    inside = np.arange(inputs["inputs_embeds"].shape[1]) < inputs["tokens"][:, None]
    logits, hidden = (np.where(inside[..., None], as_array(result), np.float32(0)) for result in results)
    return logits, hidden
