"""A made-up tokenizer for synthetic weights, with the real ids of all tokens that are no text.

Text becomes bytes, a token each. The other ids, which a reply of random weights is made of, decode to made-up words: a
reply can be read, and looks like what it is.
"""

from __future__ import annotations

import json
from typing import Any

from omni.component import Config
from qwen_omni_onnx.common.text import GENERATION, TOKENIZER

__all__ = ["files"]

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_SPACE = "\u0120"  # what the byte-level alphabet writes for a space

# The layout of a conversation that Qwen2.5-Omni was trained with, for text and sound.
_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'audio' -%}
{{ '<|audio_bos|><|AUDIO|><|audio_eos|>' }}
{%- elif part.type == 'text' -%}
{{ part.text }}
{%- else -%}
{{ raise_exception(part.type + ' is not supported') }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def files(config: Config) -> dict[str, bytes]:
    """Return the files of the checkpoint that :func:`pull.text.files` reads, by name: those that the hub has."""
    generation = {"_from_model_config": True, "transformers_version": "4.50.0.dev0"}
    named = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tables = {
        "chat_template.json": {"chat_template": _TEMPLATE},
        "tokenizer_config.json": {"add_prefix_space": False, **named, "tokenizer_class": "Qwen2Tokenizer"},
        GENERATION: generation,
    }
    return {
        TOKENIZER: _tokenizer(config).encode(),
        **{name: (json.dumps(table, indent=2) + "\n").encode() for name, table in tables.items()},
    }


def _tokenizer(config: Config) -> str:
    thinker = config["thinker_config"]
    marks = {thinker[key]: name for key, name in _NAMES.items() if thinker.get(key) is not None}
    marks |= {config["talker_config"][key]: name for key, name in _SPOKEN.items()}
    vocabulary = {letter: number for number, letter in enumerate(_alphabet())}
    for number in range(len(vocabulary), thinker["text_config"]["vocab_size"]):
        vocabulary[marks.get(number) or _word(number)] = number
    special = [{"id": number, "content": name, "special": True, **_AS_IS} for number, name in sorted(marks.items())]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    table: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    return json.dumps(table, ensure_ascii=False)


_NAMES = {
    "pad_token_id": "<|endoftext|>",
    "bos_token_id": "<|im_start|>",
    "eos_token_id": "<|im_end|>",
    "audio_token_index": "<|AUDIO|>",
    "audio_start_token_id": "<|audio_bos|>",
    "audio_end_token_id": "<|audio_eos|>",
    "image_token_index": "<|IMAGE|>",
    "video_token_index": "<|VIDEO|>",
}
_SPOKEN = {
    "tts_text_pad_token_id": "<tts_pad>",
    "tts_text_start_token_id": "<tts_text_bos>",
    "tts_text_end_token_id": "<tts_text_eod>",
}
_AS_IS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _alphabet() -> list[str]:
    """Return the letter that stands for each token of one byte: GPT-2's alphabet, printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + number) for number in range(256 - len(printable)))]


def _word(number: int) -> str:
    """Return a word of its own for each number."""
    word = ""
    while True:
        number, syllable = divmod(number, len(_SYLLABLES))
        word += _SYLLABLES[syllable]
        if not number:
            return _SPACE + word
