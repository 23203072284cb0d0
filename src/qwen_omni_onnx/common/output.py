"""What a command writes for a user: over no input, over nothing else unasked, and whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwen_omni_onnx.common import locks
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Unwritable", "require_writable", "sync", "temporary_folder", "told", "writing"]

_LONGEST_NAME = 255  # bytes, on every common file system
_FULL = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit of file sizes, or write to another disk",
}
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_NUMPY = re.compile(r"\d+ requested and \d+ written")  # what NumPy says of a full disk, without a number
_RUST = re.compile(r"\(os error (\d+)\)$")  # how safetensors, which raises no OSError, ends


class Unwritable(UserError):
    """``path`` could not be written; ``reason`` says why, and what to do about it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: cannot be written ({reason}); what was there before is as it was")
        self.path, self.reason = path, reason


def require_writable(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Refuse a place that a command must not, or cannot, write to, before anything is computed.

    Args:
        path: The file to write.
        inputs: Files that the command reads, and folders of such files.
        overwrite: Whether the user said that what is there may go.

    Raises:
        UserError: It is an input or in a folder of inputs, or there already, or a folder, or there is no folder to
            write it into.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UserError(
            f"{path.name[:40]}...: a name of {len(os.fsencode(path.name))} bytes; {_LONGEST_NAME} is the most"
        )
    if path.is_dir() or not path.name:
        raise UserError(f"{path}: a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")
    for read in inputs:
        if read.exists() and path.exists() and path.samefile(read):
            raise UserError(f"{path}: is what is read; give another name for what is to be written")
        if read.is_dir() and path.resolve().is_relative_to(read.resolve()):
            raise UserError(f"{path}: lies in {read}, which is read; give another place for what is to be written")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path}: is there already; give another name, or --overwrite")
    if not path.is_file():
        raise UserError(f"{path}: not a plain file; give another name")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a place beside a file, of a name that no other process has; on leaving, it takes the file's place.

    If the body raises, or writes nothing, what was there before stays. What a process that was killed left in the same
    folder is removed by the next one.

    Args:
        path: The file.

    Raises:
        Unwritable: The disk is full, the folder is not writable.
    """
    with contextlib.ExitStack() as stack:
        try:
            beside = stack.enter_context(locks.temporary_file(path.parent))
            beside.chmod(0o666 & ~_umask())  # as a file that is simply opened
        except OSError as error:
            raise Unwritable(path, _advised(error.errno or 0)) from None
        with told(path, beside):
            yield beside
            if beside.stat().st_size:
                sync(beside)
                os.replace(beside, path)


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder that is gone on leaving; those of processes that were killed go, too.

    Args:
        parent: Folder to make it in; that of temporary files if not given.

    Raises:
        UserError: The disk is full.
    """
    place = parent or Path(tempfile.gettempdir())
    with locks.temporary_folder(place) as folder:
        try:
            yield folder
        except Exception as error:
            reason = _reason(error, folder)
            if reason is None:
                raise
            elsewhere = "" if parent else ", or set TMPDIR to a folder on another disk"
            raise UserError(f"{place}: no temporary file can be written ({reason}{elsewhere})") from None


@contextlib.contextmanager
def told(path: Path, inside: Path) -> Iterator[None]:
    """Turn an error that says that something could not be written into one line that names what was to be written.

    Args:
        path: What the body writes.
        inside: Where it writes meanwhile. An error that names another file keeps its own name.

    Raises:
        Unwritable: The disk is full, a folder is not writable.
    """
    try:
        yield
    except Exception as error:
        reason = _reason(error, inside)
        if reason is None:
            raise
        raise Unwritable(path, reason) from None


def sync(path: Path) -> None:
    """Wait until a file is on the disk: an error of writing it back is not told before.

    Raises:
        OSError: It did not get there; the error names the file.
    """
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def _reason(error: Exception, inside: Path) -> str | None:
    """Return why something could not be written, if an error says that of a file in ``inside``, or of no file."""
    if isinstance(error, Unwritable):
        return error.reason if _is_in(error.path, inside) else None
    code, names = None, []
    if isinstance(error, OSError):
        code = error.errno
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
        if code is None and _NUMPY.fullmatch(str(error)):
            code = errno.ENOSPC
    elif found := _RUST.search(str(error)):
        code = int(found[1])
    if names and not any(_is_in(Path(os.fsdecode(name)), inside) for name in names):
        return None
    # Without a name, anything but a full disk may as well have been met when reading.
    return _advised(code) if code in _FULL or (code in _REFUSED and names) else None


def _advised(code: int) -> str:
    return f"{os.strerror(code)}: {_FULL[code]}" if code in _FULL else os.strerror(code)


def _is_in(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
