"""A stream of speech that is computed while its next codes are found.

Those who find codes read all of their weights for every single one, and wait for memory; token2wav computes. In turns,
each leaves idle what the other wants.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.token2wav.stream import Stream

__all__ = ["BackgroundStream"]


class BackgroundStream:
    """A stream whose windows are computed in a thread of its own.

    Up to the first sound, whoever feeds it waits: nothing shall keep the cores from what the listener waits for. The
    sound is the same in every bit as the stream's own.

    Args:
        stream: The stream.
        ahead: Codes that may have been found since the first one that is still to be computed; 0: in turns.
        clock: Clock that the time of ``token2wav`` is added to.
    """

    def __init__(self, stream: Stream, ahead: int, clock: Clock) -> None:
        self._stream, self._ahead, self._clock = stream, ahead, clock
        self._worker = ThreadPoolExecutor(1, "token2wav")
        self._computed: deque[Future[tuple[list[np.ndarray], float]]] = deque()
        self._begun = False

    def feed(self, code: int) -> Iterator[np.ndarray]:
        """Take in a code; yield what has been spoken by now, chunks of the waveform [samples] float32."""
        self._computed.append(self._worker.submit(_all, self._stream.feed(np.array([code]))))
        yield from self._spoken(self._ahead if self._begun else 0)

    def end(self) -> Iterator[np.ndarray]:
        """Yield what is left to be spoken: no more codes come."""
        yield from self._spoken(0)
        yield from self._clock.each("token2wav", self._stream.end())

    def close(self) -> None:
        """Compute no more than what has begun."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _spoken(self, ahead: int) -> Iterator[np.ndarray]:
        while self._computed and (len(self._computed) > ahead or self._computed[0].done()):
            waveforms, seconds = self._computed.popleft().result()
            self._clock.add("token2wav", seconds)
            self._begun |= bool(waveforms)
            yield from waveforms


def _all(waveforms: Iterator[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Return what there is to be spoken, and the seconds that it took."""
    begin = time.perf_counter()
    return list(waveforms), time.perf_counter() - begin
