"""The files of a synthetic checkpoint beside its tensors: a tokenizer with its templates, and speakers.

The tokenizer has the real ids of all tokens that are not text. Text becomes bytes, a token each. The other ids, which a
reply of random weights consists of, decode to invented words, so that a reply can be read and looks like what it is.

The speakers have the 7B's names, and values like those of real ones. Integer arithmetic and exact scaling give the same
bytes on every machine.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from omni.component import Config
from pull.speakers import Voices
from pull.synthetic_tensors import stream
from qwen_omni_onnx.common.speakers import Widths
from qwen_omni_onnx.common.text import GENERATION, TOKENIZER

__all__ = ["BOS_TOKENS", "FRAMES", "text_files", "voices"]

BOS_TOKENS = {"Chelsie": 151872, "Ethan": 151870}
FRAMES = 400  # frames of the reference mel: four seconds
_BITS = 32  # bits of a drawn integer
_DRAWS = 8  # integers whose sum is nearly normal: one value of ``cond``
_SPAN_FRAMES, _SPAN_MELS = 8, 4  # span over which a mel is smooth: about a phoneme, and a formant
_MEL_MEAN, _MEL_SPREAD = -5.0, 2.0
_MEL_FLOOR = -11.5  # about log(1e-5), where logarithms of mels are cut off

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_SPACE = "\u0120"  # a space in the byte-level alphabet

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


def text_files(config: Config) -> dict[str, bytes]:
    """Return the files that :func:`pull.text.files` reads, by name, as far as the hub has them."""
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
    special_tokens = {thinker[key]: name for key, name in _NAMES.items() if thinker.get(key) is not None}
    special_tokens |= {config["talker_config"][key]: name for key, name in _SPOKEN.items()}
    vocabulary = {letter: number for number, letter in enumerate(_alphabet())}
    for number in range(len(vocabulary), thinker["text_config"]["vocab_size"]):
        vocabulary[special_tokens.get(number) or _word(number)] = number
    added = [
        {"id": number, "content": name, "special": True, **_AS_IS} for number, name in sorted(special_tokens.items())
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    table: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    return json.dumps(table, ensure_ascii=False)


def _alphabet() -> list[str]:
    """Return the letter of each token of one byte: GPT-2's alphabet, printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + number) for number in range(256 - len(printable)))]


def _word(number: int) -> str:
    """Return the invented word of a number; no two numbers have the same."""
    word = ""
    while True:
        number, syllable = divmod(number, len(_SYLLABLES))
        word += _SYLLABLES[syllable]
        if not number:
            return _SPACE + word


def voices(widths: Widths, seed: int, vocabulary: int) -> Voices:
    """Return two voices; see :data:`pull.speakers.Voices`.

    ``cond`` is nearly normal with a spread of 1, as speaker embeddings that end in a batch normalization are;
    ``ref_mel`` is a smooth logarithm of a mel spectrogram around -5 with a spread of 2.

    Args:
        widths: Widths of the voices in the configuration.
        seed: Seed of all values.
        vocabulary: Size of the Thinker's vocabulary; where it is small, the voices' tokens are its last ones.
    """
    return {
        name: {
            "cond": _cond(f"{seed}/{name}/cond", widths.cond)[np.newaxis],
            "ref_mel": _ref_mel(f"{seed}/{name}/ref_mel", widths.ref_mel)[np.newaxis],
            "bos_token": np.array([min(bos_token, vocabulary - 1 - number)], np.int64),
        }
        for number, (name, bos_token) in enumerate(BOS_TOKENS.items())
    }


def _cond(key: str, width: int) -> np.ndarray:
    return _normal(_drawn(key, (width, _DRAWS)).sum(1), _DRAWS).astype(np.float32)


def _ref_mel(key: str, mels: int) -> np.ndarray:
    noise = _drawn(key, (FRAMES + _SPAN_FRAMES - 1, mels + _SPAN_MELS - 1))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (_SPAN_FRAMES, _SPAN_MELS)).sum((2, 3))
    mel = _MEL_MEAN + _MEL_SPREAD * _normal(smooth, _SPAN_FRAMES * _SPAN_MELS)
    return np.maximum(mel, _MEL_FLOOR).astype(np.float32)


def _drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return integers, uniform in [0, 2^32), as int64, which holds sums of them."""
    return (stream(key).random_raw(math.prod(shape)) >> np.uint64(64 - _BITS)).astype(np.int64).reshape(shape)


def _normal(total: np.ndarray, count: int) -> np.ndarray:
    """Return sums of ``count`` uniform integers, centred and scaled to a spread of 1."""
    return (2 * total - count * 2**_BITS).astype(np.float64) * (2.0**-_BITS * math.sqrt(3 / count))
