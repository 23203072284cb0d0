"""A stranger's tokenizer and chat template, in a process of its own: to the caller, a :class:`Chat`.

A template is a program, and a tokenizer is nearly one: either may loop, fill the memory or, in its native code, end the
process that it runs in.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common.confined import ConfinedProcess, Limits, StoppedError
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.generation import max_new_tokens, read_generation_config
from qwen_omni_onnx.sampling import Sampling, checkpoint_sampling
from qwen_omni_onnx.text.chat import Chat, Message, TextStream

__all__ = ["LIMITS", "ConfinedChat"]

# A conversation takes milliseconds, and the 7B's tokenizer 0.3 GB and a second to read.
LIMITS = Limits(seconds=120, nbytes=2 << 30)


class ConfinedChat:
    """Tokenizer, chat template and generation defaults of a published Thinker.

    Args:
        folder: Folder of the Thinker.
        sound: Token that stands for one embedding of sound.
        limits: What one call may take.

    Raises:
        UserError: A file is missing, or cannot be read; what reads them meets a limit, or crashes.
    """

    def __init__(self, folder: Path, sound: int, limits: Limits = LIMITS) -> None:
        self._folder, self._defaults = folder, read_generation_config(folder)
        self._process = ConfinedProcess(limits)
        self._numbers, self._ended = itertools.count(), list[int]()
        self._call(_open, str(folder.absolute()), sound)

    @property
    def sampling(self) -> Sampling:
        """How the checkpoint wants tokens to be chosen: see :attr:`Chat.sampling`."""
        return checkpoint_sampling(self._defaults)

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens after which a reply is cut off, if the checkpoint says: see :attr:`Chat.max_new_tokens`."""
        return max_new_tokens(self._defaults)

    def ids(self, messages: Sequence[Message], sounds: Sequence[int] = ()) -> np.ndarray:
        """Return the tokens of a conversation [seq] int64: see :meth:`Chat.ids`.

        Raises:
            UserError: As :meth:`Chat.ids`; the template or the tokenizer meets a limit, or crashes.
        """
        return np.array(self._call(_ids, _plain(messages), [int(count) for count in sounds]), np.int64)

    def stream(self) -> Callable[[int], str]:
        """Return what turns the tokens of one reply into text as they come: see :class:`TextStream`."""
        number = next(self._numbers)

        def step(token: int) -> str:
            ended, self._ended[:] = list(self._ended), []
            return str(self._call(_step, number, int(token), ended))

        weakref.finalize(step, self._ended.append, number)
        return step

    def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._process.call(work, *arguments)
        except StoppedError as error:
            raise UserError(f"{self._folder}: its tokenizer or chat template {error}; do not use it") from None


# What follows runs in the process.

_chats: list[Chat] = []  # the one that it was opened for
_streams: dict[int, TextStream] = {}


def _open(folder: str, sound: int) -> None:
    _chats[:] = [Chat(Path(folder), sound)]


def _ids(messages: list[Any], sounds: list[int]) -> list[int]:
    found: list[int] = _chats[0].ids(messages, sounds).tolist()
    return found


def _step(number: int, token: int, ended: list[int]) -> str:
    for other in ended:
        _streams.pop(other, None)
    if number not in _streams:
        _streams[number] = _chats[0].stream()
    return _streams[number](token)


def _plain(value: Any) -> Any:
    """Return messages as JSON holds them; of anything else, as samples of a sound, a template sees that it is there."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float) else type(value).__name__
