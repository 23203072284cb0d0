"""A spoken reply as it comes: the Thinker's text, the Talker's codes, and sound, each as soon as it is there.

One token of the text is thought for each code that is spoken, as long as there is text left: the Talker hears one a
step. So the first sound does not wait for the last word, and what is kept does not grow with the reply, but for the two
caches of keys and values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from qwen_omni_onnx.bundle import Bundle
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.room import require_room
from qwen_omni_onnx.sampler import REFERENCE
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.talker import MAX_NEW_CODES, SAMPLING, talker_prompt, talker_reply
from qwen_omni_onnx.text.chat import Message
from qwen_omni_onnx.thinker import MOST_TOKENS, Prompt, Token, Turn
from qwen_omni_onnx.token2wav import Stream, Window
from qwen_omni_onnx.voices import Voice

__all__ = ["AudioChunk", "Code", "Event", "Reply", "ReplyOptions", "TextToken", "build_prompt"]


@dataclass(frozen=True)
class TextToken:
    """A token of the text, and the text that it completes: often a word, sometimes nothing yet."""

    token: int
    text: str


@dataclass(frozen=True)
class Code:
    """A code of speech, 0.02 s."""

    code: int


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """A piece of the waveform, [samples] float32, 24 kHz."""

    waveform: np.ndarray


Event = TextToken | Code | AudioChunk


@dataclass(frozen=True)
class ReplyOptions:
    """How to reply.

    Attributes:
        voice: who speaks.
        thinker: how the tokens of the text are chosen; as the checkpoint says, if None.
        talker: how codes are chosen.
        max_new_tokens: after which the text is cut off; if None, as the checkpoint says, else 1024.
        max_new_codes: after which speech is cut off, 50 a second.
        seed: of all choices, and of the noise.
        variant: way to solve the ODE.
        window: how much of the speech is computed at once.
    """

    voice: Voice
    thinker: Sampling | None = None
    talker: Sampling = SAMPLING
    max_new_tokens: int | None = None
    max_new_codes: int = MAX_NEW_CODES
    seed: int = 0
    variant: str = REFERENCE
    window: Window = field(default_factory=Window)


def build_prompt(bundle: Bundle, messages: list[Message], sounds: Iterable[np.ndarray] = ()) -> Prompt:
    """Return what the Thinker reads of a conversation.

    Args:
        bundle: the models.
        messages: see :class:`qwen_omni_onnx.text.chat.Chat`.
        sounds: embeddings of each sound in it, [embeddings, width] float32, in order.

    Raises:
        UserError: the messages have places for another number of sounds.
    """
    heard = list(sounds)
    ids = bundle.chat.ids(messages, [len(sound) for sound in heard])
    return bundle.thinker.prompt(ids, heard)


class Reply:
    """A reply to a prompt: what comes while it is iterated over, and what came so far.

    Args:
        bundle: the models.
        prompt: see :func:`build_prompt`.
        style: how to reply.
        clock: to which the time of each part is added: thinker, talker, token2wav.

    Attributes:
        tokens: of the text so far.
        text: so far.
        codes: so far.
        text_done: whether the text is complete.
        first_sound: seconds on the clock when there was the first sound; None until then.

    Raises:
        UserError: the voice is a user's own: token2wav could speak with it, but the Talker was not trained on it.
    """

    def __init__(self, bundle: Bundle, prompt: Prompt, style: ReplyOptions, clock: Clock | None = None) -> None:
        if style.voice.bos_token is None:
            known = ", ".join(sorted(bundle.voices))
            raise UserError(f"voice {style.voice.name!r}: the Talker was not trained on it; there are: {known}")
        self._bundle, self._prompt, self._style = bundle, prompt, style
        self._clock = clock or Clock()
        self.tokens: list[int] = []
        self.codes: list[int] = []
        self.text = ""
        self.text_done = False
        self._cuts = {"text": "", "speech": ""}
        self.first_sound: float | None = None
        self._new: deque[TextToken] = deque()  # thought while the Talker listened, and not yet told

    @property
    def cut_off(self) -> str | None:
        """What of the reply was cut off before it ended by itself, after how much, and why; None if nothing was."""
        return "; ".join(filter(None, self._cuts.values())) or None

    def __iter__(self) -> Iterator[Event]:
        """Yield what is new, once.

        Raises:
            UserError: the prompt leaves no positions for a reply; a graph failed.
        """
        thinker, talker = self._bundle.thinker, self._bundle.talker
        heard = self._prompt.heard
        require_room(len(heard), int(heard.sum()), thinker.decoder.positions, talker.decoder.positions)
        with self._clock.running("thinker"):
            turn = thinker.prefill(self._prompt, room=self._most_tokens())
        text = self._thinking(turn)
        first = next(text, None)
        yield from self._told()
        if first is None or first.told is None:  # nothing to say; or, cut off there, nothing known of the only token
            return
        style = self._style
        speech = Stream(
            self._bundle.token2wav, style.voice.cond, style.voice.ref_mel,
            seed=style.seed, variant=style.variant, window=style.window,
        )  # fmt: skip
        # The Talker's prompt has two tokens more, and nothing is computed of the last code.
        most = min(style.max_new_codes, talker.decoder.positions - len(self._prompt.ids) - 1)
        for code in self._speaking(turn, first.told, text, most):
            yield from self._told()
            self.codes.append(code)
            yield Code(code)
            yield from self._sounding(speech.hear(np.array([code])))
        if len(self.codes) == most:
            self._cut("speech", f"{most} codes", most == style.max_new_codes)
        for _ in text:  # the Talker had enough before it had heard all
            yield from self._told()
        if self.codes:
            yield from self._sounding(speech.end())

    def _thinking(self, turn: Turn) -> Iterator[Token]:
        """Yield the tokens of the text, each noted as new."""
        style, chat = self._style, self._bundle.chat
        decode = chat.stream()
        tokens = turn.reply(style.thinker or chat.sampling, style.seed, self._most_tokens())
        for token in self._clock.each("thinker", tokens):
            word = TextToken(token.id, decode(token.id))
            self.tokens.append(word.token)
            self.text += word.text
            self._new.append(word)
            if token.told is None:
                self._cut("text", f"{len(self.tokens)} tokens", len(self.tokens) == self._most_tokens())
            yield token
        self.text_done = True

    def _cut(self, what: str, amount: str, allowed: bool) -> None:
        reason = "the most allowed" if allowed else "where the positions end"
        self._cuts[what] = f"the {what} after {amount}, {reason}"

    def _most_tokens(self) -> int:
        return self._style.max_new_tokens or self._bundle.chat.max_new_tokens or MOST_TOKENS

    def _speaking(self, turn: Turn, first: np.ndarray, text: Iterator[Token], most: int) -> Iterator[int]:
        """Return codes as they come; with each, one more token of the text is thought."""
        thinker, talker, style = self._bundle.thinker, self._bundle.talker, self._style
        _, end, padding = (thinker.embedding(mark) for mark in thinker.text_marks)
        assert style.voice.bos_token is not None
        voice = thinker.embedding(style.voice.bos_token)
        prompt = talker_prompt(turn.hidden, self._prompt.embeds, self._prompt.heard, voice, first)
        said = (token.told for token in text if token.told is not None)
        # Some codes have no sound. A trained Talker does not say them; one of random weights would.
        silent = set(range(self._bundle.token2wav.codes, talker.decoder.vocabulary)) - set(talker.ends)
        how = replace(style.talker, suppressed=(*style.talker.suppressed, *sorted(silent)))
        codes = talker.speak(prompt, talker_reply(said, end, padding), how, style.seed, most)
        return self._clock.each("talker", codes)

    def _sounding(self, pieces: Iterator[np.ndarray]) -> Iterator[AudioChunk]:
        for piece in self._clock.each("token2wav", pieces):
            if self.first_sound is None:
                self.first_sound = self._clock.elapsed
            yield AudioChunk(piece)

    def _told(self) -> Iterator[TextToken]:
        while self._new:
            yield self._new.popleft()
