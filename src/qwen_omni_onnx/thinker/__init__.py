"""What was heard and read, to text and to what the Talker says aloud: the Thinker's loop, without PyTorch.

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
from qwen_omni_onnx.decoder import PIECE, Decoder, DecodingSession
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sampling import Sampler, Sampling

__all__ = [
    "EMBEDDING",
    "GRAPH",
    "GREEDY",
    "Prompt",
    "SpecialTokens",
    "Thinker",
    "Token",
    "Turn",
    "open_graph",
    "open_published",
    "positions",
]

GRAPH, EMBEDDING = "thinker", "token_embedding.npy"
GREEDY = Sampling(greedy=True)
MOST_TOKENS = 1024
_TEXT_MARKS = tuple(f"tts_text_{name}_token_id" for name in ("start", "end", "pad"))


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of tokens that are no text, from ``config.json`` and ``generation_config.json``.

    Attributes:
        begin: of a speaker's turn.
        end: of a speaker's turn.
        ends: each of these ends the reply; ``end`` is the first of them.
        sound_begins: before the sound.
        sound: stands for one embedding of sound.
        sound_ends: after the sound.
        refused: stand for images and videos.
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
        """Return the marks that a checkpoint's configuration names.

        Args:
            config: the content of ``config.json``. Its ``eos_token_id`` may be a list: the first one ends a turn.
            ends: tokens that end the reply, too: those of ``generation_config.json``.

        Raises:
            UserError: it lacks one, or one is no token's number.
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
    """What the Thinker is given.

    Attributes:
        ids: of the tokens, [seq]; of sound, all the same.
        embeds: what the graph reads, [seq, width] float32.
        heard: where these are of sound, [seq] bool.
    """

    ids: np.ndarray
    embeds: np.ndarray
    heard: np.ndarray


@dataclass(frozen=True)
class Token:
    """One token of a reply.

    Attributes:
        id: of the token.
        told: what the Talker hears of it, [width] float32: its hidden state plus its embedding. None of the token at
            which a reply was cut off: as in transformers, nothing is computed of that one.
    """

    id: int
    told: np.ndarray | None


class Turn:
    """A prompt that was taken in, and the reply to it, token by token.

    Attributes:
        prompt: which.
        hidden: the hidden states of the prompt, [seq, width] float32.
    """

    def __init__(self, thinker: Thinker, prompt: Prompt, conversation: DecodingSession, piece: int) -> None:
        self.prompt = prompt
        self._thinker, self._conversation = thinker, conversation
        answer = conversation.prefill(prompt.embeds[None], piece=piece)
        self.hidden, self._logits = answer.hidden[0], answer.logits[0]

    def reply(self, sampling: Sampling = GREEDY, seed: int = 0, most: int = MOST_TOKENS) -> Iterator[Token]:
        """Yield the reply; the token that ends it is left out.

        Args:
            sampling: how tokens are chosen.
            seed: of the choices.
            most: tokens, after which the reply is cut off; as it is where no position is left.
        """
        thinker, logits, most = self._thinker, self._logits, min(most, self._conversation.left + 1)
        sampler = Sampler(sampling, thinker.decoder.vocabulary, self.prompt.ids.tolist(), seed)
        for number in range(most):
            token = sampler.choose(logits)
            if token in thinker.marks.ends:
                return
            if number + 1 == most:
                yield Token(token, None)
                return
            embeds = thinker.embedding(token)
            answer = self._conversation.step(embeds[None])
            logits = answer.logits[0]
            yield Token(token, answer.hidden[0, 0] + embeds)


class Thinker:
    """The Thinker's graph, its embedding table, and the loop around them.

    Args:
        graph: ``thinker.onnx``, or one of its quantized forms.
        embedding: ``token_embedding.npy``.
        config: the checkpoint's ``config.json``.
        threads: as for :func:`qwen_omni_onnx.common.session.open_session`.
        stop_spinning: as for that.
        ends: tokens that end the reply beside those of ``config.json``: those of ``generation_config.json``.

    Raises:
        UserError: they do not fit together.
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
        self.marks = SpecialTokens.of(config, ends)
        talker = config.get("talker_config", {})
        self._text_marks = {name: talker.get(name) for name in _TEXT_MARKS}
        self.decoder = Decoder(graph, positions(config), threads, stop_spinning=stop_spinning)
        self.embedding = self.decoder.table(embedding)
        beyond = [token for token in self.marks.ends if token >= self.decoder.vocabulary]
        if beyond:
            raise UserError(
                f"eos_token_id: no token {beyond[0]}; the Thinker's vocabulary has {self.decoder.vocabulary}"
            )

    @property
    def text_marks(self) -> tuple[int, ...]:
        """What the Talker hears when speech begins, when the text has ended, and from then on.

        Raises:
            UserError: the checkpoint has no Talker, and so no such tokens.
        """
        return tuple(_number(self._text_marks, name) for name in _TEXT_MARKS)

    def prompt(self, ids: np.ndarray, sound: np.ndarray | Sequence[np.ndarray] = ()) -> Prompt:
        """Return a prompt.

        Args:
            ids: of the tokens, [seq] int64: one ``marks.sound`` for each embedding of sound.
            sound: embeddings of the encoder, [embeddings, width] float32, or of several sounds, in order.

        Raises:
            UserError: as many embeddings as ids of sound are needed; there is an image or a video.
        """
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or not len(ids):
            raise UserError(f"a prompt has ids of [seq], not {list(ids.shape)}")
        if np.isin(ids, self.marks.refused).any():
            raise UserError("images and videos have positions of three axes; this graph is for text and sound only")
        heard = ids == self.marks.sound
        sounds = [sound] if isinstance(sound, np.ndarray) else sound
        places, width = np.flatnonzero(heard), self.decoder.width
        shapes = [list(one.shape) for one in sounds]
        if sum(shape[0] for shape in shapes) != len(places) or any(shape[1:] != [width] for shape in shapes):
            said = ", ".join(map(str, shapes)) or "missing"
            raise UserError(f"the prompt's sound is {said}; its ids of sound want {[len(places), width]}")
        embeds = np.zeros((len(ids), width), np.float32)
        embeds[~heard] = self.embedding(ids[~heard])
        for one in sounds:  # of ten minutes, 215 MB: strung together first, they would be there three times
            embeds[places[: len(one)]], places = one, places[len(one) :]
        return Prompt(ids, embeds, heard)

    def prompt_of_sound(self, sound: np.ndarray) -> Prompt:
        """Return the shortest prompt: somebody's turn, of sound alone, and the beginning of the reply.

        Args:
            sound: embeddings of the encoder, [embeddings, width] float32.
        """
        marks = self.marks
        spoken = [marks.sound_begins, *[marks.sound] * len(sound), marks.sound_ends]
        return self.prompt(np.array([marks.begin, *spoken, marks.end, marks.begin]), sound)

    def prefill(self, prompt: Prompt, room: int = 0, piece: int = PIECE) -> Turn:
        """Read a prompt; return what can reply to it.

        Args:
            prompt: which.
            room: tokens of the reply to make room for at once.
            piece: tokens to take in at a time.

        Raises:
            UserError: there are more tokens than positions.
        """
        return Turn(self, prompt, self.decoder.begin(room=len(prompt.ids) + room), piece)


def open_published(folder: Path, *, quantized: bool = True, threads: int = 0, stop_spinning: bool = False) -> Thinker:
    """Open a published folder of the Thinker.

    Args:
        folder: which.
        quantized: its quantized graph, else the float32 one.
        threads: as for :func:`qwen_omni_onnx.common.session.open_session`.
        stop_spinning: as for that.

    Raises:
        UserError: the folder is not what it should be, or a file in it is not as published.
    """
    graphs = published_graphs(folder, GRAPH, [GRAPH], quantized=quantized)
    return open_graph(graphs[GRAPH], folder, threads, stop_spinning=stop_spinning)


def open_graph(graph: Path, folder: Path, threads: int = 0, *, stop_spinning: bool = False) -> Thinker:
    """Open a graph of the Thinker with the files of a folder: embedding table, ``config.json``, generation defaults.

    Args:
        graph: ``thinker.onnx``, or one of its quantized forms.
        folder: that holds the others.
        threads: as for :func:`qwen_omni_onnx.common.session.open_session`.
        stop_spinning: as for that.

    Raises:
        UserError: one is missing, or they do not fit together.
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
