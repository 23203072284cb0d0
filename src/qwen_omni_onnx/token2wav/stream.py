"""Codes arrive in chunks, sound leaves in chunks.

The DiT sees blocks of 12 codes (0.24 s), through its layers a few blocks back and one ahead for every evaluation. What
it looks back on is kept from the window before, for every evaluation: no block that was spoken is computed again (see
:mod:`qwen_omni_onnx.token2wav.velocity`). Over the whole ODE the influence of blocks ahead falls fast, so that two of
them give nearly what the whole utterance would; noise is the same frame by frame. The vocoder then needs a few frames
more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.token2wav.runtime import Token2Wav, voice_noise

__all__ = ["Stream", "Window", "stream"]


@dataclass(frozen=True)
class Window:
    """How much is computed at once, in blocks of 0.24 s.

    Attributes:
        blocks: Blocks that are spoken from one window; more cost less in all, and let the listener wait longer.
        ahead: Blocks after them that are computed for their sake. It is never 0, because a layer looks ahead. The first
            window has one, for the listener waits for it.
        first: Blocks of the first window; each one after it has twice as many.
    """

    blocks: int = 4
    ahead: int = 2
    first: int = 1

    def __post_init__(self) -> None:
        if min(self.blocks, self.first, self.ahead) < 1:
            raise UserError(f"window: {self}: blocks, first and ahead must be at least 1")


def stream(
    model: Token2Wav,
    codes: Iterable[np.ndarray],
    cond: np.ndarray,
    ref_mel: np.ndarray,
    *,
    seed: int = 0,
    variant: str | None = None,
    window: Window | None = None,
) -> Iterator[np.ndarray]:
    """Yield chunks of the waveform, float32, 24 kHz, as codes come in; together 480 samples a code.

    Memory does not grow with the length.

    Args:
        model: The graphs.
        codes: Chunks of codes, [codes] int64 of any length.
        cond: Speaker's embedding, [1, 192] float32.
        ref_mel: Speaker's reference, [1, frames, 80] float32.
        seed: Seed for the initial noise; with the same one, :meth:`Token2Wav.speak` gives the same sound within the
            window's error.
        variant: Name of the way to solve the ODE; None: see :func:`qwen_omni_onnx.sampler.pick_variant`.
        window: How much is computed at once.

    Raises:
        UserError: The same as :meth:`Token2Wav.mel`; no codes at all.
    """
    speaking = Stream(model, cond, ref_mel, seed=seed, variant=variant, window=window)
    for chunk in codes:
        yield from speaking.feed(chunk)
    yield from speaking.end()


class Stream:
    """An utterance that is spoken while its codes come.

    It keeps a few blocks of codes and noise, what the DiT looks back on, and mel frames that the vocoder needs.
    Arguments and errors are those of :func:`stream`.
    """

    def __init__(
        self,
        model: Token2Wav,
        cond: np.ndarray,
        ref_mel: np.ndarray,
        *,
        seed: int = 0,
        variant: str | None = None,
        window: Window | None = None,
    ) -> None:
        if model.block % model.repeats:
            raise UserError(
                f"streaming: a block of {model.block} frames does not hold whole codes of {model.repeats} frames"
            )
        self._model, self._window, self._variant = model, window or Window(), variant
        self._cond, self._ref_mel = cond, ref_mel
        self._noise = voice_noise(seed)
        self._codes = np.zeros(0, np.int64)  # whose mel is not found yet
        self._noises = np.zeros((0, model.mels), np.float32)  # the same
        self._past: list[np.ndarray] = []  # what the DiT looks back on; empty before the first window
        self._next = self._window.first  # blocks of the next window
        self._mel = np.zeros((0, model.mels), np.float32)
        self._spoken = 0  # frames of `_mel` that were spoken; those before are context
        self._ended = False

    def feed(self, chunk: np.ndarray) -> Iterator[np.ndarray]:
        """Take in codes [codes] int64; yield what can be spoken by now."""
        chunk = np.asarray(chunk)
        if chunk.ndim != 1 or chunk.dtype != np.int64:
            raise UserError(f"codes: {chunk.dtype} {list(chunk.shape)}; chunks of int64 [codes] are needed")
        drawn = self._noise.standard_normal((self._model.repeats * len(chunk), self._model.mels), np.float32)
        self._codes = np.concatenate([self._codes, chunk])
        self._noises = np.concatenate([self._noises, drawn])
        yield from self._ready()

    def end(self) -> Iterator[np.ndarray]:
        """Yield what is left to be spoken: no more codes come."""
        if not len(self._codes) and not self._past:
            raise UserError("codes: none; there is nothing to say")
        self._ended = True
        yield from self._ready()

    def _ready(self) -> Iterator[np.ndarray]:
        while True:
            whole, left = divmod(len(self._codes), self._model.codes_per_block)
            there = whole + (1 if left and self._ended else 0)
            count = min(self._next, there) if self._ended else self._next
            ahead = self._window.ahead if self._past else 1
            if count < 1 or (not self._ended and there < count + ahead):
                break
            self._compute(count, min(there, count + ahead))
            yield from self._speak()
        if self._ended:
            yield from self._speak()

    def _compute(self, count: int, seen: int) -> None:
        """Find the mel of the next ``count`` blocks, of ``seen`` that the DiT sees."""
        model = self._model
        codes = self._codes[None, : seen * model.codes_per_block]
        noise = self._noises[None, : codes.shape[1] * model.repeats]
        lens = np.array([codes.shape[1]])
        mel, self._past = model.mel_part(
            codes, lens, self._cond, self._ref_mel, noise, self._variant, past=self._past, own=count
        )
        self._mel = np.concatenate([self._mel, mel[0, : count * model.block]])
        self._codes = self._codes[count * model.codes_per_block :]
        self._noises = self._noises[count * model.block :]
        self._next = min(2 * count, self._window.blocks)

    def _speak(self) -> Iterator[np.ndarray]:
        finished = self._ended and not len(self._codes)
        until = len(self._mel) if finished else len(self._mel) - self._model.context
        if until <= self._spoken:
            return
        yield self._model.vocode_chunk(self._mel, self._spoken, until)
        kept = max(0, until - self._model.context)
        self._mel, self._spoken = self._mel[kept:], until - kept
