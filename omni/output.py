"""A file that a user asks a command to write: over no input, over nothing else unasked, and whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from omni.errors import Problem

__all__ = ["require_writable", "writing"]

_LONGEST_NAME = 255  # bytes, on every common file system


def require_writable(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Refuse a place that a command must not, or cannot, write to, before anything is computed.

    Args:
        path: The file to write.
        inputs: Files that the command reads.
        overwrite: Whether the user said that what is there may go.

    Raises:
        Problem: It is an input, or there already, or a folder, or there is no folder to write it into.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise Problem(
            f"{path.name[:40]}...: a name of {len(os.fsencode(path.name))} bytes; {_LONGEST_NAME} is the most"
        )
    if path.is_dir() or not path.name:
        raise Problem(f"{path}: a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise Problem(f"{path.parent}: no such folder; make it first")
    if not os.path.lexists(path):
        return
    for read in inputs:
        if read.exists() and path.exists() and path.samefile(read):
            raise Problem(f"{path}: is what is read; give another name for what is to be written")
    if not overwrite:
        raise Problem(f"{path}: is there already; give another name, or --overwrite")
    if not path.is_file():
        raise Problem(f"{path}: not a plain file; give another name")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a place beside a file, of a name that no other process has; on leaving, it takes the file's place.

    If the body raises, or writes nothing, what was there before stays.

    Args:
        path: The file.

    Raises:
        Problem: It cannot be written: the disk is full, the folder is not writable.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=".qwen-omni-", suffix=".writing", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None
    beside = Path(name)
    try:
        os.fchmod(handle, 0o666 & ~_umask())  # as a file that is simply opened
        os.close(handle)
        yield beside
        if beside.stat().st_size:
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS):
            raise _unwritable(path, error) from None
        raise
    finally:
        beside.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> Problem:
    return Problem(f"{path}: cannot be written ({os.strerror(error.errno or 0)}); what was there before is as it was")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
