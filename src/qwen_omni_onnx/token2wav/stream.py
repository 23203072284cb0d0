"""Codes arrive in chunks, sound leaves in chunks.

The DiT sees blocks of 12 codes (0.24 s), through its layers a few blocks back and one ahead for every evaluation. Over
the whole ODE the influence of farther blocks falls fast, so a window of blocks around those that are to be spoken gives
them nearly as the whole utterance would; noise is the same frame by frame. The vocoder then needs a few frames more.
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
        back: Blocks before them that are computed again for their sake.
        ahead: Blocks after them that are computed for their sake. It is never 0, because a layer looks ahead.
        first: Blocks of the first window, which the listener waits for.
    """

    blocks: int = 4
    back: int = 2
    ahead: int = 1
    first: int = 1

    def __post_init__(self) -> None:
        if min(self.blocks, self.first, self.ahead) < 1 or self.back < 0:
            raise UserError(f"window: {self}: blocks, first and ahead must be at least 1, back at least 0")


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

    It keeps a few blocks of codes and noise, and mel frames that the vocoder needs. Arguments and errors are those of
    :func:`stream`.
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
        self._codes = np.zeros(0, np.int64)  # from block `_kept` on
        self._noises = np.zeros((0, model.mels), np.float32)  # the same
        self._kept = 0
        self._done = 0  # blocks whose mel is found
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
        if not len(self._codes) and not self._done:
            raise UserError("codes: none; there is nothing to say")
        self._ended = True
        yield from self._ready()

    def _ready(self) -> Iterator[np.ndarray]:
        per_block = self._model.codes_per_block
        while True:
            whole, left = divmod(len(self._codes), per_block)
            there = self._kept + whole + (1 if left and self._ended else 0)
            count = self._window.blocks if self._done else self._window.first
            if self._ended:
                count = min(count, there - self._done)
            if count < 1 or (not self._ended and there < self._done + count + self._window.ahead):
                break
            self._compute(count, min(there, self._done + count + self._window.ahead))
            yield from self._speak()
        if self._ended:
            yield from self._speak()

    def _compute(self, count: int, until: int) -> None:
        """Find the mel of the next ``count`` blocks in a window that ends before block ``until``."""
        model = self._model
        start = max(0, self._done - self._window.back)
        per_block = model.codes_per_block
        at, to = (start - self._kept) * per_block, (until - self._kept) * per_block
        codes = self._codes[at:to][None]
        noise = self._noises[at * model.repeats : to * model.repeats][None]
        lens = np.array([codes.shape[1]])
        mel = model.mel(codes, lens, self._cond, self._ref_mel, noise, self._variant)[0]
        first = (self._done - start) * model.block
        self._mel = np.concatenate([self._mel, mel[first : first + count * model.block]])
        self._done += count
        needed = max(0, self._done - self._window.back)
        self._codes = self._codes[(needed - self._kept) * per_block :]
        self._noises = self._noises[(needed - self._kept) * model.block :]
        self._kept = needed

    def _speak(self) -> Iterator[np.ndarray]:
        finished = self._ended and len(self._codes) <= (self._done - self._kept) * self._model.codes_per_block
        until = len(self._mel) if finished else len(self._mel) - self._model.context
        if until <= self._spoken:
            return
        yield self._model.vocode_chunk(self._mel, self._spoken, until)
        kept = max(0, until - self._model.context)
        self._mel, self._spoken = self._mel[kept:], until - kept
