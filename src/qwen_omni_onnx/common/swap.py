"""One folder in place of another: at once, where the system can exchange two."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange", "swap_in"]

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100


def swap_in(beside: Path, folder: Path) -> None:
    """Put a folder in place of another one, which ends up beside it: under its name, or as ``replaced``.

    Args:
        beside: The new folder, in one that nothing else is in.
        folder: Where it belongs. There need not be one.
    """
    if not folder.exists():
        os.rename(beside, folder)
    elif not exchange(beside, folder):
        # No atomic exchange on this system: for a moment there is no artifact, never half of one.
        away = beside.with_name("replaced")
        os.rename(folder, away)
        try:
            os.rename(beside, folder)
        except BaseException:
            os.rename(away, folder)
            raise


def exchange(one: Path, other: Path) -> bool:
    """Atomically exchange two folders (Linux renameat2); return False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
