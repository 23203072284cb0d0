"""Raw samples from a pipe, as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["raw_samples"]

_MOST = 1 << 16  # bytes that are read at once
_HEADERS = (b"RIFF", b"fLaC", b"OggS", b"ID3")


def raw_samples(path: Path) -> Iterator[np.ndarray]:
    """Yield samples [samples] float32 in -1 to 1, of signed 16-bit little-endian ones, mono, as they come in.

    They are taken in by a thread of its own: whoever records does not wait for those who listen.

    Args:
        path: A pipe such as ``/dev/stdin``, or a file.

    Raises:
        UserError: It cannot be read, is a terminal, or begins as a sound file of some format does.
    """
    try:
        file = FileIO(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise UserError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if os.isatty(file.fileno()):
        raise UserError(f"{path}: a terminal; pipe raw samples in, as of: arecord -t raw -f S16_LE -r 16000 -c 1")
    came: SimpleQueue[bytes | OSError] = SimpleQueue()
    Thread(target=_take_in, args=(file, came), daemon=True).start()
    waiting, begun = b"", False
    while True:
        block = came.get()
        if isinstance(block, OSError):
            raise UserError(f"{path}: cannot be read ({block.strerror})")
        if not block:
            return
        waiting += block
        if len(waiting) < 4:
            continue
        if not begun and waiting.startswith(_HEADERS):
            raise UserError(f"{path}: begins as a sound file does; --live takes raw samples: leave it out for a file")
        begun = True
        whole = len(waiting) // 2 * 2
        yield np.frombuffer(waiting[:whole], "<i2").astype(np.float32) / np.float32(1 << 15)
        waiting = waiting[whole:]


def _take_in(file: FileIO, came: SimpleQueue[bytes | OSError]) -> None:
    try:
        while block := file.read(_MOST):
            came.put(block)
        came.put(b"")
    except OSError as error:
        came.put(error)
