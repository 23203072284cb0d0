"""Sound files and pipes, opened so that one can go back and forth in them: libsndfile has to, in FLAC for one."""

from __future__ import annotations

import os
import stat
import tempfile
from io import FileIO
from pathlib import Path

from qwen_omni_onnx.common.errors import UserError

__all__ = ["open_sound"]

_BLOCK = 1 << 20
_MOST_PIPED = 1 << 32  # bytes; six hours of CD sound. More comes from what never ends, and would fill the disk


def open_sound(path: Path) -> FileIO:
    """Return an open file, unbuffered; what comes through a pipe is first put into a file without a name.

    Args:
        path: A plain file, or a pipe such as ``/dev/stdin``.

    Raises:
        UserError: There is no such file; it is a folder, a device or a socket; it may not be read; a pipe is empty, or
            holds more than there is room for.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            return FileIO(path)
        if stat.S_ISFIFO(kind):
            return _whole_pipe(path)
    except FileNotFoundError:
        hint = "; /dev/stdin is what is piped into a command" if str(path) == "-" else ""
        raise UserError(f"{path}: no such file{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise UserError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(kind):
        raise UserError(f"{path}: is a folder; give an audio file in it")
    raise UserError(f"{path}: is a device or a socket; give an audio file, or a pipe that one comes through")


def _whole_pipe(path: Path) -> FileIO:
    """Return a file without a name that holds all that comes through a pipe."""
    with FileIO(path) as pipe, tempfile.TemporaryFile() as file:
        held = 0
        while block := pipe.read(_BLOCK):
            held += len(block)
            if held > _MOST_PIPED:
                raise UserError(f"{path}: more than {_MOST_PIPED:,} bytes came through the pipe; give a file")
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise UserError(
                    f"{path}: {held:,} bytes do not fit into {tempfile.gettempdir()} ({error.strerror}); give a file"
                ) from None
        if not held:
            raise UserError(f"{path}: empty; nothing came through the pipe")
        return FileIO(os.dup(file.fileno()))
