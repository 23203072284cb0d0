"""Prompts of text and sound for the Thinker: tokens, and the embeddings that its graph reads in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.generation import eos_token_ids, read_generation_config, token_ids
from qwen_omni_onnx.embedding import EmbeddingTable

__all__ = ["EMBEDDING", "Prompt", "PromptBuilder", "SpecialTokens", "joined", "number_of", "open_prompts"]

EMBEDDING = "token_embedding.npy"
_TTS_TOKENS = tuple(f"tts_text_{name}_token_id" for name in ("start", "end", "pad"))


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of tokens that are no text, from ``config.json`` and ``generation_config.json``.

    Attributes:
        begin: Token that begins a speaker's turn.
        end: Token that ends a speaker's turn.
        ends: Tokens each of which ends the reply; ``end`` is the first of them.
        sound_begins: Token before a sound.
        sound: Token that stands for one embedding of sound.
        sound_ends: Token after a sound.
        refused: Tokens that stand for images and videos.
    """

    begin: int
    end: int
    ends: tuple[int, ...]
    sound_begins: int
    sound: int
    sound_ends: int
    refused: tuple[int, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], ends: Iterable[int] = ()) -> SpecialTokens:
        """Return the special tokens that a checkpoint's configuration names.

        Args:
            config: Content of ``config.json``. Its ``eos_token_id`` may be a list: the first one ends a turn.
            ends: Tokens that end the reply, too: those of ``generation_config.json``.

        Raises:
            UserError: The configuration lacks one, or one is no token's number.
        """
        section = config.get("thinker_config", {})
        named = [
            *token_ids(section.get("eos_token_id"), "config.json: thinker_config.eos_token_id"),
            *token_ids(config.get("eos_token_id"), "config.json: eos_token_id"),
        ]
        return cls(
            begin=number_of(section, "bos_token_id"),
            end=named[0] if named else number_of(section, "eos_token_id"),
            ends=tuple(dict.fromkeys([*named, *ends])),
            sound_begins=number_of(section, "audio_start_token_id"),
            sound=number_of(section, "audio_token_index"),
            sound_ends=number_of(section, "audio_end_token_id"),
            refused=tuple(section[key] for key in ("image_token_index", "video_token_index") if key in section),
        )


@dataclass(frozen=True)
class Prompt:
    """A prompt, as the Thinker's graph reads it.

    Attributes:
        ids: Ids of the tokens, [seq] int64; those of sound are all the same.
        embeds: Embeddings that the graph reads, [seq, width] float32.
        audio_mask: Where these are of sound, [seq] bool.
    """

    ids: np.ndarray
    embeds: np.ndarray
    audio_mask: np.ndarray


def joined(parts: Sequence[Prompt]) -> Prompt:
    """Return the prompt that parts make up, in order."""
    ids, embeds, masks = zip(*((part.ids, part.embeds, part.audio_mask) for part in parts), strict=True)
    return Prompt(np.concatenate(ids), np.concatenate(embeds), np.concatenate(masks))


class PromptBuilder:
    """Builds prompts from the Thinker's embedding table, without its graph.

    Args:
        config: Content of the checkpoint's ``config.json``.
        embedding: Embedding table.
        ends: Tokens that end the reply beside those of ``config.json``: those of ``generation_config.json``.

    Raises:
        UserError: The configuration lacks a special token.
    """

    def __init__(self, config: Mapping[str, Any], embedding: EmbeddingTable, ends: Iterable[int] = ()) -> None:
        self.special_tokens = SpecialTokens.of(config, ends)
        self.embedding = embedding
        talker = config.get("talker_config", {})
        self._tts_tokens = {name: talker.get(name) for name in _TTS_TOKENS}

    @property
    def tts_tokens(self) -> tuple[int, ...]:
        """Tokens that the Talker reads when speech begins, when the text has ended, and from then on.

        Raises:
            UserError: The checkpoint has no Talker, and so no such tokens.
        """
        return tuple(number_of(self._tts_tokens, name) for name in _TTS_TOKENS)

    def prompt(self, ids: np.ndarray, sound: np.ndarray | Sequence[np.ndarray] = ()) -> Prompt:
        """Return a prompt.

        Args:
            ids: Ids of the tokens, [seq] int64: one ``special_tokens.sound`` for each embedding of sound.
            sound: Embeddings of the encoder, [embeddings, width] float32, or those of several sounds, in order.

        Raises:
            UserError: There are not as many embeddings as ids of sound; there is an image or a video.
        """
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or not len(ids):
            raise UserError(f"a prompt has ids of [seq], not {list(ids.shape)}")
        if np.isin(ids, self.special_tokens.refused).any():
            raise UserError("images and videos have positions of three axes; this graph is for text and sound only")
        audio_mask = ids == self.special_tokens.sound
        sounds = [sound] if isinstance(sound, np.ndarray) else sound
        places, width = np.flatnonzero(audio_mask), self.embedding.width
        shapes = [list(one.shape) for one in sounds]
        if sum(shape[0] for shape in shapes) != len(places) or any(shape[1:] != [width] for shape in shapes):
            said = ", ".join(map(str, shapes)) or "missing"
            raise UserError(f"the prompt's sound is {said}; its ids of sound want {[len(places), width]}")
        embeds = np.zeros((len(ids), width), np.float32)
        embeds[~audio_mask] = self.embedding(ids[~audio_mask])
        for one in sounds:  # of ten minutes, 215 MB: strung together first, they would be there three times
            embeds[places[: len(one)]], places = one, places[len(one) :]
        return Prompt(ids, embeds, audio_mask)

    def prompt_of_sound(self, sound: np.ndarray) -> Prompt:
        """Return the shortest prompt: a user's turn, of sound alone, and the beginning of the reply.

        Args:
            sound: Embeddings of the encoder, [embeddings, width] float32.
        """
        special = self.special_tokens
        spoken = [special.sound_begins, *[special.sound] * len(sound), special.sound_ends]
        return self.prompt(np.array([special.begin, *spoken, special.end, special.begin]), sound)


def open_prompts(folder: Path) -> PromptBuilder:
    """Return a builder of prompts from a folder of the Thinker's, whatever graphs it holds.

    Raises:
        UserError: A file is missing, or cannot be read.
    """
    ends = eos_token_ids(read_generation_config(folder))
    return PromptBuilder(read_config(folder), EmbeddingTable(folder / EMBEDDING), ends)


def number_of(section: Mapping[str, Any], name: str) -> int:
    """Return a number of ``config.json``, not below 0.

    Raises:
        UserError: It is none.
    """
    value = section.get(name)
    if type(value) is not int or value < 0:
        raise UserError(f"config.json: {name} is {value!r}, not a number; take the checkpoint's own file")
    return value
