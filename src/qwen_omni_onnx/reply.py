"""A spoken reply as it comes: the Thinker's text, the Talker's codes, and sound, each as soon as it is there.

The Thinker generates one token of text for each code of speech, as long as there is text left, because the Talker reads
one token a step. So the first sound does not wait for the end of the text, and memory does not grow with the reply, but
for the two caches of keys and values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.positions import require_positions
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.talker.runtime import MAX_NEW_CODES, SAMPLING, talker_prompt, talker_reply
from qwen_omni_onnx.text.chat import Message
from qwen_omni_onnx.thinker.prompts import Prompt
from qwen_omni_onnx.thinker.runtime import MAX_NEW_TOKENS, GeneratedToken, PrefilledPrompt
from qwen_omni_onnx.token2wav import Stream, Window
from qwen_omni_onnx.token2wav.background import BackgroundStream
from qwen_omni_onnx.voices import Voice, pick

if TYPE_CHECKING:
    from qwen_omni_onnx.bundle import Bundle

__all__ = ["AudioChunk", "Code", "Event", "Reply", "ReplyOptions", "TextToken", "build_prompt"]


@dataclass(frozen=True)
class TextToken:
    """A token of the text.

    Attributes:
        token: Its id.
        text: The text that it completes: often a word, sometimes nothing yet.
    """

    token: int
    text: str


@dataclass(frozen=True)
class Code:
    """A codec code of speech, 0.02 s.

    Attributes:
        code: The code.
    """

    code: int


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """A chunk of the speech.

    Attributes:
        waveform: Samples [samples] float32, 24 kHz.
    """

    waveform: np.ndarray


Event = TextToken | Code | AudioChunk
Question = Prompt | Callable[[], Prompt | PrefilledPrompt]


@dataclass(frozen=True)
class ReplyOptions:
    """How to reply.

    Attributes:
        voice: Voice that speaks, or its name; None takes the model's first one by name.
        thinker: How the tokens of the text are chosen; None takes the checkpoint's own defaults.
        talker: How codes are chosen.
        max_new_tokens: Tokens after which the text is cut off; None takes the checkpoint's own limit, else 1024.
        max_new_codes: Codes after which speech is cut off, 50 a second.
        seed: Seed for sampling and for the initial noise.
        variant: Name of the way to solve token2wav's ODE; None: see :func:`qwen_omni_onnx.sampler.pick_variant`.
        window: How much of the speech is computed at once.
        in_turns: Find no code while sound is computed; otherwise codes are found up to a window ahead.

    Raises:
        UserError: A number is impossible.
    """

    voice: Voice | str | None = None
    thinker: Sampling | None = None
    talker: Sampling = SAMPLING
    max_new_tokens: int | None = None
    max_new_codes: int = MAX_NEW_CODES
    seed: int = 0
    variant: str | None = None
    window: Window = field(default_factory=Window)
    in_turns: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_new_tokens", self.max_new_tokens, 1),
            ("max_new_codes", self.max_new_codes, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"{name}: {value}; give {least} or more")


def build_prompt(bundle: Bundle, messages: Sequence[Message], embeddings: Iterable[np.ndarray] = ()) -> Prompt:
    """Return the Thinker's prompt for a conversation.

    Args:
        bundle: The models.
        messages: The conversation: see :class:`qwen_omni_onnx.text.chat.Chat`.
        embeddings: Embeddings of each sound in it, [embeddings, width] float32, in order.

    Raises:
        UserError: The messages have places for another number of sounds.
    """
    sounds = list(embeddings)
    ids = bundle.chat.ids(messages, [len(sound) for sound in sounds])
    return bundle.thinker.prompt(ids, sounds)


class Reply:
    """A reply to a prompt: iterate over it for what comes; its attributes hold what came so far.

    :meth:`qwen_omni_onnx.Bundle.reply` makes it.

    Args:
        bundle: The models.
        question: The prompt (see :func:`build_prompt`), or a function that computes it when the iteration begins, and
            may have had it read already.
        options: How to reply.
        clock: Clock that the time of each model is added to: thinker, talker, token2wav.

    Attributes:
        voice: Voice that speaks.
        tokens: Ids of the text's tokens so far.
        text: Text so far.
        codes: Codes so far.
        text_done: Whether the text is complete.
        first_sound: Seconds on the clock when the first sound was there; None until then.

    Raises:
        UserError: There is no such voice; or it is a user's own, which token2wav could speak with, but which the Talker
            was not trained on.
    """

    def __init__(self, bundle: Bundle, question: Question, options: ReplyOptions, clock: Clock | None = None) -> None:
        self.voice = _speaker(bundle, options.voice)
        self._bundle, self._question, self._options = bundle, question, options
        self._clock = clock or Clock()
        self.tokens: list[int] = []
        self.codes: list[int] = []
        self.text = ""
        self.text_done = False
        self._cuts = {"text": "", "speech": ""}
        self.first_sound: float | None = None
        self._pending: deque[TextToken] = deque()  # generated while the Talker read them, and not yet yielded

    @property
    def cut_off(self) -> str | None:
        """What of the reply was cut off before it ended by itself, after how much, and why; None if nothing was."""
        return "; ".join(filter(None, self._cuts.values())) or None

    def __iter__(self) -> Iterator[Event]:
        """Yield what is new, once.

        Raises:
            UserError: The prompt leaves no positions for a reply; a graph failed.
        """
        question = self._question() if callable(self._question) else self._question
        prefilled = question if isinstance(question, PrefilledPrompt) else self._prefill(question)
        text = self._generate_text(prefilled)
        first = next(text, None)
        yield from self._pending_text()
        if first is None or first.talker_input is None:  # no text; or it is cut off at a token that nothing is known of
            return
        speech = self._stream()
        try:
            yield from self._speak(speech, self._generate_codes(prefilled, first.talker_input, text), text)
        finally:
            speech.close()

    def _prefill(self, prompt: Prompt) -> PrefilledPrompt:
        thinker, talker = self._bundle.thinker, self._bundle.talker
        sound = int(prompt.audio_mask.sum())
        require_positions(len(prompt.ids), sound, thinker.decoder.positions, talker.decoder.positions)
        with self._clock.running("thinker"):
            return thinker.prefill(prompt, reserve=self._max_new_tokens)

    def _stream(self) -> BackgroundStream:
        options, token2wav = self._options, self._bundle.token2wav
        stream = Stream(
            token2wav, self.voice.cond, self.voice.ref_mel,
            seed=options.seed, variant=options.variant, window=options.window,
        )  # fmt: skip
        ahead = 0 if options.in_turns else options.window.blocks * token2wav.codes_per_block
        return BackgroundStream(stream, ahead, self._clock)

    def _speak(self, speech: BackgroundStream, codes: Iterable[int], text: Iterable[GeneratedToken]) -> Iterator[Event]:
        """Yield codes, the text that is generated meanwhile, and sound."""
        for code in codes:
            yield from self._pending_text()
            self.codes.append(code)
            yield Code(code)
            yield from self._audio_chunks(speech.feed(code))
        for _ in text:  # the Talker ended before it had read all of it
            yield from self._pending_text()
        if self.codes:
            yield from self._audio_chunks(speech.end())

    @property
    def _max_new_tokens(self) -> int:
        return self._options.max_new_tokens or self._bundle.chat.max_new_tokens or MAX_NEW_TOKENS

    def _generate_text(self, prefilled: PrefilledPrompt) -> Iterator[GeneratedToken]:
        """Yield the tokens of the text, each noted as pending."""
        options, chat = self._options, self._bundle.chat
        decode = chat.stream()
        tokens = prefilled.generate(options.thinker or chat.sampling, options.seed, self._max_new_tokens)
        for generated in self._clock.each("thinker", tokens):
            token = TextToken(generated.id, decode(generated.id))
            self.tokens.append(token.token)
            self.text += token.text
            self._pending.append(token)
            if generated.talker_input is None:
                self._cut("text", f"{len(self.tokens)} tokens", len(self.tokens) == self._max_new_tokens)
            yield generated
        self.text_done = True

    def _cut(self, what: str, amount: str, allowed: bool) -> None:
        reason = "the most allowed" if allowed else "where the positions end"
        self._cuts[what] = f"the {what} after {amount}, {reason}"

    def _generate_codes(
        self, prefilled: PrefilledPrompt, first: np.ndarray, text: Iterator[GeneratedToken]
    ) -> Iterator[int]:
        """Yield codes as they come; for each, one more token of the text is generated."""
        thinker, talker, options = self._bundle.thinker, self._bundle.talker, self._options
        _, end, padding = (thinker.embedding(token) for token in thinker.tts_tokens)
        assert self.voice.bos_token is not None
        voice = thinker.embedding(self.voice.bos_token)
        prompt = talker_prompt(prefilled.hidden, prefilled.prompt.embeds, prefilled.prompt.audio_mask, voice, first)
        rows = (token.talker_input for token in text if token.talker_input is not None)
        # Some codes have no sound. A trained Talker does not choose them; one of random weights would.
        silent = set(range(self._bundle.token2wav.codes, talker.decoder.vocabulary)) - set(talker.ends)
        sampling = replace(options.talker, suppressed=(*options.talker.suppressed, *sorted(silent)))
        # The Talker's prompt has two tokens more, and nothing is computed of the last code.
        most = min(options.max_new_codes, talker.decoder.positions - len(prefilled.prompt.ids) - 1)
        codes = talker.speak(prompt, talker_reply(rows, end, padding), sampling, options.seed, most)
        yield from self._clock.each("talker", codes)
        if len(self.codes) == most:
            self._cut("speech", f"{most} codes", most == options.max_new_codes)

    def _audio_chunks(self, waveforms: Iterator[np.ndarray]) -> Iterator[AudioChunk]:
        for waveform in waveforms:
            if self.first_sound is None:
                self.first_sound = self._clock.elapsed
            yield AudioChunk(waveform)

    def _pending_text(self) -> Iterator[TextToken]:
        while self._pending:
            yield self._pending.popleft()


def _speaker(bundle: Bundle, voice: Voice | str | None) -> Voice:
    """Return a voice that the Talker knows.

    Raises:
        UserError: There is none of that name; or it is a user's own.
    """
    if voice is None:
        return bundle.voice()
    if isinstance(voice, str):
        return pick(bundle.voices, voice, own=False)
    if voice.bos_token is None:
        known = ", ".join(sorted(bundle.voices))
        raise UserError(f"voice {voice.name!r}: the Talker was not trained on it; there are: {known}")
    return voice
