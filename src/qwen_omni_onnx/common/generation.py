"""What ``generation_config.json`` says of the choice of tokens, read as transformers' ``generate`` reads it.

Source: ``GenerationConfig._get_default_generation_params`` and ``GenerationMixin._get_logits_processor`` of
transformers 5.23. Keys that transformers does not know, or that change nothing in what is chosen (caches, outputs,
speculative decoding, what only beams use), are ignored here as there. ``max_length`` is, too: ``generate`` of the whole
model always gives ``max_new_tokens``, which overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.text import GENERATION

__all__ = ["eos_token_ids", "max_new_tokens", "read_generation_config", "sampling_settings", "token_ids"]

# What transformers takes where a file says nothing, or null.
_DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
# What would change a reply in transformers and is not supported here, with the value at which it changes nothing.
_UNSUPPORTED: dict[str, Any] = {
    "bad_words_ids": None, "begin_suppress_tokens": [], "constraints": None, "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "exponential_decay_length_penalty": None,
    "force_words_ids": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "guidance_scale": 1,
    "is_assistant": False, "max_time": None, "min_length": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "penalty_alpha": 0, "sequence_bias": None,
    "stop_strings": None, "token_healing": False, "watermarking_config": None,
}  # fmt: skip
_UNSUPPORTED_SAMPLING: dict[str, Any] = {
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "min_p": 0,
    "top_h": None,
    "typical_p": 1,
}


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``generation_config.json``; nothing, if it has none.

    Raises:
        UserError: The file is not a JSON object.
    """
    path = folder / GENERATION
    table = artifact.read_json(path) if path.is_file() else {}
    if not isinstance(table, dict):
        raise UserError(f"{path}: not a JSON object; take the checkpoint's own file")
    return table


def sampling_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return how tokens are chosen: greedily unless ``do_sample`` is true, and by transformers' defaults.

    Args:
        table: Content of ``generation_config.json``.

    Returns:
        The arguments of :class:`qwen_omni_onnx.sampling.Sampling`, which knows what is possible.

    Raises:
        UserError: A value is of the wrong type, or something is set that is not supported here and that would make
            transformers choose other tokens.
    """
    do_sample = _value(table, "do_sample", False)
    if not isinstance(do_sample, bool):
        raise _wrong("do_sample", do_sample, "true or false")
    for key, neutral in (_UNSUPPORTED | (_UNSUPPORTED_SAMPLING if do_sample else {})).items():
        value = _value(table, key, neutral)
        if value != neutral:
            raise UserError(
                f"{GENERATION}: {key} is {value!r}: not supported here, and transformers would reply otherwise "
                "because of it; remove it from the checkpoint's file"
            )
    how = {key: _number(table, key) for key in _DEFAULTS}
    if not do_sample and how["temperature"] == 0:  # written for "greedy", where it does nothing
        how["temperature"] = _DEFAULTS["temperature"]
    suppressed = _value(table, "suppress_tokens", [])
    if not isinstance(suppressed, list):
        raise _wrong("suppress_tokens", suppressed, "a list of tokens' numbers")
    found = token_ids(suppressed, f"{GENERATION}: suppress_tokens") if suppressed else ()
    return {"greedy": not do_sample, "suppressed": found, **how}


def max_new_tokens(table: Mapping[str, Any]) -> int | None:
    """Return after how many tokens a reply is cut off, if ``generation_config.json`` says so.

    Raises:
        UserError: The value is no positive integer.
    """
    most = _value(table, "max_new_tokens", None)
    if most is not None and (type(most) is not int or most < 1):
        raise _wrong("max_new_tokens", most, "a positive integer")
    return most


def eos_token_ids(table: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens that ``generation_config.json`` says end a reply; none, if it does not say.

    Raises:
        UserError: The same as :func:`token_ids`.
    """
    return token_ids(table.get("eos_token_id"), f"{GENERATION}: eos_token_id")


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """Return the tokens that a setting names: one, a list of them, or none if it is null.

    Args:
        value: Value of the setting.
        where: Where it was found, for the message.

    Raises:
        UserError: The value is anything else: a list without tokens, or a number that no token has.
    """
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if not found or not all(type(token) is int and token >= 0 for token in found):
        raise UserError(f"{where} is {value!r}, not the number of a token or a list of them")
    return tuple(found)


def _value(table: Mapping[str, Any], key: str, default: Any) -> Any:
    value = table.get(key)
    return default if value is None else value


def _number(table: Mapping[str, Any], key: str) -> Any:
    value = _value(table, key, _DEFAULTS[key])
    whole = key == "top_k"
    if type(value) is not int and (whole or type(value) is not float):
        raise _wrong(key, value, "an integer" if whole else "a number")
    return value


def _wrong(key: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{GENERATION}: {key} is {value!r}, not {wanted}; take the checkpoint's own file")
