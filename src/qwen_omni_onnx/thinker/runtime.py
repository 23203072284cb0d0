"""The Thinker's loop, without PyTorch: a prompt of text and sound, to text and to what the Talker reads.

Source: ``Qwen2_5OmniThinkerForConditionalGeneration`` of transformers 5.23. Positions are those of the tokens, as they
are there for text and sound; images and videos have positions of three axes, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.generation import eos_token_ids, read_generation_config, token_ids
from qwen_omni_onnx.decoder import CHUNK_SIZE, Decoder, DecodingSession
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sampling import Sampler, Sampling

__all__ = [
    "EMBEDDING",
    "GRAPH",
    "GREEDY",
    "MAX_NEW_TOKENS",
    "GeneratedToken",
    "PrefilledPrompt",
    "Prompt",
    "SpecialTokens",
    "Thinker",
    "open_graph",
    "open_thinker",
    "positions",
]

GRAPH, EMBEDDING = "thinker", "token_embedding.npy"
GREEDY = Sampling(greedy=True)
MAX_NEW_TOKENS = 1024
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
            begin=_number(section, "bos_token_id"),
            end=named[0] if named else _number(section, "eos_token_id"),
            ends=tuple(dict.fromkeys([*named, *ends])),
            sound_begins=_number(section, "audio_start_token_id"),
            sound=_number(section, "audio_token_index"),
            sound_ends=_number(section, "audio_end_token_id"),
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


@dataclass(frozen=True)
class GeneratedToken:
    """One token of a reply.

    Attributes:
        id: Id of the token.
        talker_input: What the Talker reads of it, [width] float32: its hidden state plus its embedding. None for the
            token at which a reply is cut off: as in transformers, nothing is computed of that one.
    """

    id: int
    talker_input: np.ndarray | None


class PrefilledPrompt:
    """A prompt after its prefill, which a reply can be generated from once.

    Attributes:
        prompt: The prompt.
        hidden: Hidden states of its tokens, [seq, width] float32.
    """

    def __init__(self, thinker: Thinker, prompt: Prompt, session: DecodingSession, chunk_size: int) -> None:
        self.prompt = prompt
        self._thinker, self._session = thinker, session
        output = session.prefill(prompt.embeds[None], chunk_size=chunk_size)
        self.hidden, self._logits = output.hidden[0], output.logits[0]

    def generate(
        self, sampling: Sampling = GREEDY, seed: int = 0, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[GeneratedToken]:
        """Yield the reply; the token that ends it is left out.

        Args:
            sampling: How tokens are chosen.
            seed: Seed for sampling.
            max_new_tokens: Tokens after which the reply is cut off; it is so, too, where no position is left.
        """
        thinker, logits, max_new_tokens = self._thinker, self._logits, min(max_new_tokens, self._session.left + 1)
        sampler = Sampler(sampling, thinker.decoder.vocabulary, self.prompt.ids.tolist(), seed)
        for number in range(max_new_tokens):
            token = sampler.choose(logits)
            if token in thinker.special_tokens.ends:
                return
            if number + 1 == max_new_tokens:
                yield GeneratedToken(token, None)
                return
            embeds = thinker.embedding(token)
            output = self._session.step(embeds[None])
            logits = output.logits[0]
            yield GeneratedToken(token, output.hidden[0, 0] + embeds)


class Thinker:
    """The Thinker's graph, its embedding table, and the loop around them.

    Args:
        graph: File, ``thinker.onnx``, or one of its quantized forms.
        embedding: File, ``token_embedding.npy``.
        config: Content of the checkpoint's ``config.json``.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.
        ends: Tokens that end the reply beside those of ``config.json``: those of ``generation_config.json``.

    Raises:
        UserError: The files do not fit together.
    """

    def __init__(
        self,
        graph: Path,
        embedding: Path,
        config: Mapping[str, Any],
        threads: int = 0,
        *,
        stop_spinning: bool = False,
        ends: Iterable[int] = (),
    ) -> None:
        self.special_tokens = SpecialTokens.of(config, ends)
        talker = config.get("talker_config", {})
        self._tts_tokens = {name: talker.get(name) for name in _TTS_TOKENS}
        self.decoder = Decoder(graph, positions(config), threads, stop_spinning=stop_spinning)
        self.embedding = self.decoder.table(embedding)
        beyond = [token for token in self.special_tokens.ends if token >= self.decoder.vocabulary]
        if beyond:
            raise UserError(
                f"eos_token_id: no token {beyond[0]}; the Thinker's vocabulary has {self.decoder.vocabulary}"
            )

    @property
    def tts_tokens(self) -> tuple[int, ...]:
        """Tokens that the Talker reads when speech begins, when the text has ended, and from then on.

        Raises:
            UserError: The checkpoint has no Talker, and so no such tokens.
        """
        return tuple(_number(self._tts_tokens, name) for name in _TTS_TOKENS)

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
        places, width = np.flatnonzero(audio_mask), self.decoder.width
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

    def prefill(self, prompt: Prompt, reserve: int = 0, chunk_size: int = CHUNK_SIZE) -> PrefilledPrompt:
        """Read a prompt; return what a reply to it can be generated from.

        Args:
            prompt: The prompt.
            reserve: Tokens of the reply that the cache holds from the beginning; it grows where more come.
            chunk_size: Tokens of the prompt that the graph reads at a time.

        Raises:
            UserError: There are more tokens than positions.
        """
        return PrefilledPrompt(self, prompt, self.decoder.begin(reserve=len(prompt.ids) + reserve), chunk_size)


def open_thinker(folder: Path, *, quantized: bool = True, threads: int = 0, stop_spinning: bool = False) -> Thinker:
    """Open a published folder of the Thinker.

    Args:
        folder: The folder.
        quantized: Whether to open its quantized graph, else the float32 one.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.

    Raises:
        UserError: The folder is not what it should be, or a file in it is not as published.
    """
    graphs = published_graphs(folder, GRAPH, [GRAPH], quantized=quantized)
    return open_graph(graphs[GRAPH], folder, threads, stop_spinning=stop_spinning)


def open_graph(graph: Path, folder: Path, threads: int = 0, *, stop_spinning: bool = False) -> Thinker:
    """Open a graph of the Thinker with the files of a folder: embedding table, ``config.json``, generation defaults.

    Args:
        graph: File, ``thinker.onnx``, or one of its quantized forms.
        folder: Folder of the other files.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.

    Raises:
        UserError: A file is missing, or they do not fit together.
    """
    config, ends = read_config(folder), eos_token_ids(read_generation_config(folder))
    return Thinker(graph, folder / EMBEDDING, config, threads, stop_spinning=stop_spinning, ends=ends)


def positions(config: Mapping[str, Any]) -> int:
    """Return how many positions the Thinker of a ``config.json`` has."""
    return _number(config.get("thinker_config", {}).get("text_config", {}), "max_position_embeddings")


def _number(section: Mapping[str, Any], name: str) -> int:
    value = section.get(name)
    if type(value) is not int or value < 0:
        raise UserError(f"config.json: {name} is {value!r}, not a number; take the checkpoint's own file")
    return value
