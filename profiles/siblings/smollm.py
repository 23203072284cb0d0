"""SmolLM2, a Llama, as the Thinker: a Llama is a Qwen2 whose biases of queries, keys and values are zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qwen_omni_onnx.common.errors import UserError

__all__ = ["EMBEDDING", "Llama", "read", "unpermute"]

EMBEDDING = "thinker.model.embed_tokens.weight"
_LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_CONTROL = 3  # GGUF's type of tokens that are no text


@dataclass(frozen=True)
class Llama:
    """A Llama in the terms of the checkpoint.

    Attributes:
        text_config: Sizes, as ``config.json`` names them.
        special_tokens: Ids of special tokens, as ``thinker_config`` names them.
        tensors: Tensors by name, float16.
        tokenizer: Tokenizer with the byte-level BPE of SmolLM2.
        chat_template: Jinja template of a conversation.
    """

    text_config: dict[str, Any]
    special_tokens: dict[str, int]
    tensors: dict[str, np.ndarray]
    tokenizer: Tokenizer
    chat_template: str


def read(path: Path) -> Llama:
    """Read a Llama from a GGUF file.

    Raises:
        UserError: The package gguf is not installed, or the file is not a Llama's.
    """
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError:
        raise UserError("needs the package gguf; run pip install -c constraints.txt -e '.[trained]'") from None
    try:
        reader = GGUFReader(path)
    except ValueError as error:
        raise UserError(f"{path.name}: not GGUF ({error})") from None
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts.get("general.architecture") != "llama":
        raise UserError(f"{path.name}: architecture {facts.get('general.architecture')!r}, not llama")
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return Llama(
        _text_config(facts), _special_tokens(facts), _tensors(stored, facts), _tokenizer(facts),
        facts["tokenizer.chat_template"],
    )  # fmt: skip


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows of queries or keys in the order of transformers, which rotates one half of a head with the other.

    llama.cpp rotates neighbours, and permutes the rows when it converts a checkpoint: ``LlamaModel.permute`` in its
    ``convert_hf_to_gguf.py``. This is the inverse.

    Args:
        weight: Weight [heads * head_dim, hidden] as GGUF has it.
        heads: Number of heads.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _text_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    head_dim = facts["llama.rope.dimension_count"]
    return {
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": head_dim,
        "num_hidden_layers": facts["llama.block_count"],
        "vocab_size": facts["llama.vocab_size"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["llama.rope.freq_base"],
        # Pairs of the rotary embedding for each of its three axes, which are one and the same for text and sound.
        "rope_scaling": {"mrope_section": [head_dim // 4, head_dim // 4, 0], "rope_type": "default", "type": "default"},
    }


def _special_tokens(facts: Mapping[str, Any]) -> dict[str, int]:
    """Return ids of the Thinker's special tokens. A Llama has none for sound: its last three special ones stand in."""
    *_, begins, sound, ends = _control_tokens(facts)
    return {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "audio_start_token_id": begins,
        "audio_token_index": sound,
        "audio_end_token_id": ends,
    }


def _control_tokens(facts: Mapping[str, Any]) -> list[int]:
    return [token for token, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == _CONTROL]


def _tensors(stored: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    heads = {
        "self_attn.q_proj": facts["llama.attention.head_count"],
        "self_attn.k_proj": facts["llama.attention.head_count_kv"],
    }
    embedding = stored["token_embd.weight"]
    found = {
        EMBEDDING: embedding,
        "thinker.model.norm.weight": stored["output_norm.weight"],
        "thinker.lm_head.weight": stored.get("output.weight", embedding),  # tied, where GGUF has none
    }
    for layer in range(facts["llama.block_count"]):
        for name, short in _LINEAR.items():
            weight = stored[f"blk.{layer}.{short}.weight"]
            place = f"thinker.model.layers.{layer}.{name}"
            found[f"{place}.weight"] = unpermute(weight, heads[name]) if name in heads else weight
            if short in ("attn_q", "attn_k", "attn_v"):
                found[f"{place}.bias"] = np.zeros(len(weight))
    return {name: np.array(tensor, np.float16, order="C") for name, tensor in found.items()}


def _tokenizer(facts: Mapping[str, Any]) -> Tokenizer:
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # What GGUF calls "smollm": digits one by one, then GPT-2's words of bytes.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(tokens[number], special=True) for number in _control_tokens(facts)])
    return tokenizer
