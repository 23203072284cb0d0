"""Files and folders that belong to a process while it lives: by a lock that the system takes back however it ends.

A lock is asked for and never waited for. On a file system without locks, no process is refused, and nothing that one
might have abandoned is removed. Locks are those of this machine: on a network's folder, another machine's do not count.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qwen_omni_onnx.common.errors import UserError, undisturbed

__all__ = ["claimed", "empty", "temporary_file", "temporary_folder"]


@contextlib.contextmanager
def claimed(place: Path, whole: Path) -> Iterator[None]:
    """Make a folder, or take over what a process that ended left of it, and keep every other process out of it.

    On leaving, it is removed if it is empty.

    Args:
        place: Folder to work in; its parent is there.
        whole: What is made in it, for the message.

    Raises:
        UserError: Another process, or another thread of this one, works in it.
    """
    descriptor: int | None = None
    try:
        with undisturbed():
            descriptor = _claim(place)
        if descriptor is None:
            raise UserError(f"{whole}: is being written by another process; wait until it is done, or stop it")
        yield
    finally:
        with undisturbed():
            if descriptor is not None:
                if _is_at(place, descriptor):
                    with contextlib.suppress(OSError):  # not empty
                        place.rmdir()
                _release(descriptor)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder of a name that no other process has; it is gone on leaving.

    What processes that were killed left of such folders goes, too.
    """
    with _temporary(parent, ".folder", tempfile.mkdtemp) as folder:
        yield folder


@contextlib.contextmanager
def temporary_file(parent: Path) -> Iterator[Path]:
    """Yield an empty file of a name that no other process has; unless it was renamed, it is gone on leaving.

    What processes that were killed left of such files goes, too.
    """

    def make(suffix: str, prefix: str, parent: Path) -> str:
        descriptor, name = tempfile.mkstemp(suffix, prefix, parent)
        os.close(descriptor)
        return name

    with _temporary(parent, ".writing", make) as file:
        yield file


def empty(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in list(folder.iterdir()):
        _remove(path)


@contextlib.contextmanager
def _temporary(parent: Path, suffix: str, make: Callable[[str, str, Path], str]) -> Iterator[Path]:
    """Yield what ``make`` makes, locked; nothing but what is made here has such a prefix and suffix."""
    prefix = ".qwen-omni-"
    _remove_abandoned(path for path in _listed(parent) if path.name.startswith(prefix) and path.name.endswith(suffix))
    path, descriptor = parent, None
    try:
        while descriptor is None:  # another process may take it for abandoned before it is locked
            with undisturbed():
                path = Path(make(suffix, prefix, parent))
                descriptor = _locked(path)
        yield path
    finally:
        with undisturbed():
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    _remove(path)
                _release(descriptor)


def _claim(place: Path) -> int | None:
    """Return the descriptor of a folder, which holds its lock; None if another process has it."""
    while True:
        with contextlib.suppress(FileExistsError):
            place.mkdir()
        try:
            descriptor = _open(place, os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # the process that had it has just removed it
        if _lock(descriptor) is False:
            os.close(descriptor)
            return None
        if _is_at(place, descriptor):
            return descriptor
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Return the descriptor of what this process has made, which holds its lock; None if another was faster."""
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        return None
    if _lock(descriptor) is not False and _is_at(path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove what no process that lives has locked; what cannot be asked or removed stays."""
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = _open(path)
            try:
                if _lock(descriptor) and _is_at(path, descriptor):
                    _remove(path)
            finally:
                os.close(descriptor)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # may be written to, but not read
        return []


def _open(path: Path, kind: int = 0) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | kind)  # a pipe is not waited for


def _lock(descriptor: int) -> bool | None:
    """Lock a file or folder; False if another process has, None where there are no locks."""
    try:
        import fcntl  # not on every system

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _release(descriptor: int) -> None:
    """Unlock: closing alone would leave the lock to a process that was forked meanwhile."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to what was opened: nobody removed or replaced it before it was locked."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
