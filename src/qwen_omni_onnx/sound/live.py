"""Embeddings of a sound that is still coming: those of a block of 2 s as soon as it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound.audio import HOP, INPUT_SAMPLE_RATE, SHORTEST, embeddings, require_rate, require_samples

if TYPE_CHECKING:
    from qwen_omni_onnx.listen import Listener

__all__ = ["LiveSound"]

_MARGIN = 2  # frames at a cut that see beyond it: a frame is heard with 200 samples on each side
_RANGE = 2.0  # of features, 8 decades of power: what is further below the loudest one is raised to there


class LiveSound:
    """A sound that comes in pieces of any length, and is embedded block by block.

    Transformers raises what is far below a clip's loudest feature. Here that is the loudest one so far, so that blocks
    before the loudest one keep more of what is faint than those of the whole clip: ``python -m benchmarks.live``
    measures how much this changes. Everything else is the same.

    Args:
        listener: Front end and encoder.
        rate: Rate of the samples in Hz.

    Raises:
        UserError: The rate is impossible.
    """

    def __init__(self, listener: Listener, rate: float = INPUT_SAMPLE_RATE) -> None:
        import soxr

        require_rate(rate, "sound")
        self._listener = listener
        self._resampler = None
        if rate != INPUT_SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(rate, INPUT_SAMPLE_RATE, 1, dtype="float32", quality="VHQ")
        self._audio = np.zeros(0, np.float32)  # 16 kHz; from the margin before the first frame that is not embedded yet
        self._lead = 0  # frames of that margin
        self._samples = 0
        self._loudest = -np.inf

    def feed(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Take in samples [samples], floating point in -1 to 1; yield embeddings [tokens, width] of what is whole.

        Raises:
            UserError: They are no such samples, or not finite.
        """
        self._take(require_samples(samples, "sound"), last=False)
        block = self._listener.block
        while len(self._audio) >= (self._lead + block + _MARGIN) * HOP:
            yield self._embedded(block, self._audio[: (self._lead + block + _MARGIN) * HOP])
            passed = self._lead + block - _MARGIN
            self._audio, self._lead = self._audio[passed * HOP :], _MARGIN

    def end(self) -> Iterator[np.ndarray]:
        """Yield embeddings of what is left: no more sound comes.

        Raises:
            UserError: All of it is too short for the encoder.
        """
        self._take(np.zeros(0, np.float32), last=True)
        if not embeddings(self._samples):
            raise UserError(f"sound: {self._samples} samples at {INPUT_SAMPLE_RATE} Hz; at least {SHORTEST} are needed")
        left = -(-len(self._audio) // HOP) - self._lead
        while left > 0:
            frames = min(left, self._listener.block)
            if embeddings(frames * HOP):
                yield self._embedded(frames, self._audio)
            left -= frames
            self._audio, self._lead = self._audio[(self._lead + frames - _MARGIN) * HOP :], _MARGIN

    def _take(self, samples: np.ndarray, *, last: bool) -> None:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        self._audio = np.concatenate([self._audio, samples])
        self._samples += len(samples)

    def _embedded(self, frames: int, audio: np.ndarray) -> np.ndarray:
        """Return the embeddings of the next frames, whose audio begins with the margin and may go beyond them."""
        features = self._listener.features(audio, INPUT_SAMPLE_RATE)[:, self._lead : self._lead + frames]
        self._loudest = max(self._loudest, float(features.max()))
        return self._listener.embed(np.maximum(features, np.float32(self._loudest - _RANGE)))
