"""A checkpoint's ``config.json`` as transformers understands it: what is left out filled in, what is nested unfolded.

The hub's configuration leaves out what transformers' classes fill with their defaults (of the 7B's DiT: widths, depth,
blocks), a Thinker that was saved alone has no section for itself, and some keys have a second name. Everything that
reads a configuration reads it through :func:`completed`, so that the rest of the project knows one form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common.artifact import read_json
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.identity import checkpoint_name

__all__ = ["ALIASES", "DEFAULTS", "IGNORED_ALIASES", "completed", "read_config", "table_at"]

# Of transformers 5.23's configuration classes (tests compare them): only what this project reads. A section that is
# not there is not made up: its part of the model is missing then.
_AUDIO_TOKENS = {"audio_start_token_id": 151647, "audio_end_token_id": 151648}
_PLACEHOLDERS = {"audio_token_index": 151646, "image_token_index": 151655, "video_token_index": 151656}
_DECODER = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "thinker_config": {**_AUDIO_TOKENS, **_PLACEHOLDERS},
    "thinker_config.audio_config": {
        "num_mel_bins": 128, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "d_model": 1280, "activation_function": "gelu", "scale_embedding": False, "max_source_positions": 1500,
        "n_window": 100, "output_dim": 3584,
    },
    "thinker_config.text_config": {**_DECODER, "vocab_size": 152064},
    "talker_config": {
        **_DECODER, **_PLACEHOLDERS, **_AUDIO_TOKENS, "vocab_size": 8448, "embedding_size": 3584, "head_dim": 128,
        "tts_text_start_token_id": 151860, "tts_text_end_token_id": 151861, "tts_text_pad_token_id": 151859,
        "tts_codec_start_token_id": 8293, "tts_codec_end_token_id": 8294, "tts_codec_pad_token_id": 8292,
        "tts_codec_mask_token_id": 8296,
    },
    "token2wav_config.dit_config": {
        "hidden_size": 1024, "num_hidden_layers": 22, "num_attention_heads": 16, "head_dim": 64, "ff_mult": 2,
        "emb_dim": 512, "max_position_embeddings": 32768, "block_size": 24, "look_ahead_layers": [10],
        "look_backward_layers": [0, 20], "repeats": 2, "num_embeds": 8193, "mel_dim": 80, "enc_emb_dim": 192,
        "enc_dim": 128, "enc_channels": [256, 256, 256, 256, 768], "enc_kernel_sizes": [5, 3, 3, 3, 1],
        "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 64, "enc_res2net_scale": 2, "enc_se_channels": 64,
    },
    "token2wav_config.bigvgan_config": {
        "mel_dim": 80, "upsample_initial_channel": 1536, "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]], "upsample_rates": [5, 3, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4],
    },
}  # fmt: skip

_TOKEN_ALIASES = {f"{kind}_token_id": f"{kind}_token_index" for kind in ("audio", "image", "video")}
ALIASES: Mapping[str, Mapping[str, str]] = {
    "thinker_config": _TOKEN_ALIASES,
    "thinker_config.audio_config": {
        "num_hidden_layers": "encoder_layers", "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads", "intermediate_size": "encoder_ffn_dim",
    },
    "talker_config": _TOKEN_ALIASES,
}  # fmt: skip
"""Second names of keys, by section: transformers' ``attribute_map``."""

IGNORED_ALIASES: Mapping[str, Mapping[str, str]] = {
    "token2wav_config.dit_config": {"dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"},
}
"""Names under which the hub's configuration says what transformers reads under others, and does not look at."""

_THINKER = "qwen2_5_omni_thinker"
_OF_ALL = ("torch_dtype", "dtype", "quantization_config", "transformers_version")  # apply to a Thinker's whole file


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with every default filled in, of a Thinker that was saved alone as of a whole model.

    What it was given stays as it is; completing twice changes nothing.

    Raises:
        UserError: A section is no table, or two names of the same thing say different things.
    """
    found: dict[str, Any] = dict(config)
    alone = found.get("model_type") == _THINKER or {"audio_config", "text_config"} <= set(found)
    if alone and "thinker_config" not in found:
        shared = {key: found[key] for key in _OF_ALL if key in found}
        found = {"model_type": "qwen2_5_omni", **shared, "thinker_config": dict(config)}
    for path, defaults in DEFAULTS.items():
        section = _section(found, path)
        if section is None:
            continue
        for key, name in ALIASES.get(path, {}).items():
            if section.get(key) is not None and section.setdefault(name, section[key]) != section[key]:
                raise UserError(
                    f"config.json: {path}: {name} is {section[name]!r} and {key}, the same thing, {section[key]!r}; "
                    "mend one of them"
                )
        for key, value in defaults.items():
            if key not in section:
                section[key] = list(value) if isinstance(value, list) else value
        if (
            section.get("num_key_value_heads", 0) is None
        ):  # as transformers takes it: a head of keys for each of queries
            section["num_key_value_heads"] = section["num_attention_heads"]
        for key, name in IGNORED_ALIASES.get(path, {}).items():
            if section.get(key, section[name]) != section[name]:
                raise UserError(
                    f"config.json: {path}.{key} is {section[key]!r}, but transformers reads {name}, which is "
                    f"{section[name]!r} where it is left out; write {name} beside it"
                )
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json``, completed, with every other ``*_config.json`` of the folder under its stem.

    Where the folder's ``source.json`` says which model it is, its name stands under ``CHECKPOINT_NAME``.

    Raises:
        UserError: There is no ``config.json``, one of them is not JSON, or see :func:`completed`.
    """
    others = sorted(folder.glob("*_config.json"))
    found = {**completed(read_json(folder / "config.json")), **{path.stem: read_json(path) for path in others}}
    return {**found, **checkpoint_name(folder)}


def table_at(config: Mapping[str, Any], path: str) -> Any:
    """Return the section of a configuration that a path leads to: keys of nested sections, joined by dots.

    Raises:
        KeyError: The configuration lacks one of the keys.
        TypeError: One of them leads to no table.
    """
    table: Any = config
    for _, key in _walk(path):
        table = table[key]
    return table


def _section(config: dict[str, Any], path: str) -> dict[str, Any] | None:
    """Return a section for writing, copied from what was given; None if the configuration has none."""
    section = config
    for place, key in _walk(path):
        inner = section.get(key)
        if inner is None:
            return None
        if not isinstance(inner, Mapping):
            raise UserError(f"config.json: {place} is {inner!r:.60}, not a table; not a configuration of Qwen2.5-Omni")
        section[key] = section = dict(inner)
    return section


def _walk(path: str) -> Iterator[tuple[str, str]]:
    keys = path.split(".")
    return ((".".join(keys[: number + 1]), key) for number, key in enumerate(keys))
