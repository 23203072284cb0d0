"""A stream of speech that is computed while its next codes are found: the same chunks, in order, and not far behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.token2wav.background import BackgroundStream

EACH = 3  # codes of a chunk


class _Stream:
    """Speaks a chunk of codes as they are; each waits for leave, where some is asked for."""

    def __init__(self, leave: threading.Semaphore | None = None) -> None:
        self.threads: set[str] = set()
        self.chunks = 0
        self._leave, self._codes = leave, list[int]()

    def feed(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        self._codes += codes.tolist()
        if len(self._codes) == EACH:
            self.threads.add(threading.current_thread().name)
            if self._leave:
                assert self._leave.acquire(timeout=60)
            if min(self._codes) < 0:
                raise UserError("a code below 0")
            self.chunks += 1
            yield np.array(self._codes)
            self._codes = []

    def end(self) -> Iterator[np.ndarray]:
        yield np.array(self._codes)


def _background(stream: Any, ahead: int, clock: Clock | None = None) -> BackgroundStream:
    return BackgroundStream(stream, ahead, clock or Clock())


@pytest.mark.parametrize("ahead", [0, 1, 4, 100])
def test_chunks_are_those_of_the_stream_in_order(ahead: int) -> None:
    stream, clock = _Stream(), Clock()
    speech = _background(stream, ahead, clock)

    chunks = [chunk for code in range(14) for chunk in speech.feed(code)]
    chunks += speech.end()

    assert np.concatenate(chunks).tolist() == list(range(14))
    assert not any(name == threading.current_thread().name for name in stream.threads)
    assert set(clock.seconds) == {"token2wav"}


def test_codes_wait_for_the_first_sound_and_are_never_further_ahead_than_asked() -> None:
    leave = threading.Semaphore(1)
    speech = _background(_Stream(leave), 4)

    first = [len(list(speech.feed(code))) for code in range(EACH)]
    ahead = [len(list(speech.feed(code))) for code in range(4)]  # none of them waits
    threading.Timer(0.05, leave.release).start()
    then = list(speech.feed(4))

    assert first == [0, 0, 1]
    assert ahead == [0] * 4
    assert len(then) <= 1
    leave.release()
    assert sum(map(len, [*then, *speech.end()])) == 5


def test_a_mistake_is_told_where_the_stream_is_fed(message: Callable[..., str]) -> None:
    speech = _background(_Stream(), 100)
    for code in range(EACH):
        list(speech.feed(code))
    for code in (1, -1, 2):
        list(speech.feed(code))

    assert message(list, speech.end()) == "a code below 0"


def test_nothing_is_begun_after_it_is_closed() -> None:
    others, leave = set(threading.enumerate()), threading.Semaphore(1)
    stream = _Stream(leave)
    speech = _background(stream, 100)
    for code in range(4 * EACH):
        list(speech.feed(code))

    speech.close()
    leave.release()

    for thread in set(threading.enumerate()) - others:
        thread.join(60)
        assert not thread.is_alive()
    assert stream.chunks <= 2  # the first, and one that may have begun
