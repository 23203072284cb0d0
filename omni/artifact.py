"""An artifact: a folder that one stage hands to the next, whole or not at all.

A folder is written beside its final place and swapped in at the end, together with a ``manifest.json`` that names
every file with its size and SHA-256. ``check`` accepts a folder only if all of that is true, so a kill at any moment
leaves the old artifact, the new one, or something that no later stage accepts.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omni.errors import Problem

__all__ = ["MANIFEST", "check", "fingerprint", "read_json", "read_manifest", "sha256", "write_json", "writing"]

MANIFEST = "manifest.json"
_MEND = {"published": "download the folder again, or publish it again"}  # by kind; others are built here
# By the hub and its client; by git; by macOS, which adds ._NAME to every NAME on other file systems; by Windows.
_PUT_BESIDE = (".cache", ".gitattributes", ".git", ".gitignore", ".DS_Store", "Thumbs.db", "desktop.ini")
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100


@contextlib.contextmanager
def writing(folder: Path, **facts: Any) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, seal it with a manifest and put it in place of ``folder``.

    Args:
        folder: where the artifact belongs. An artifact that is there already stays until the new one is whole.
        facts: what the manifest says beside its list of files; must not depend on time or place, so that
            the same inputs give the same bytes.

    If the body raises, nothing changes. What a killed run left behind is swept up by the next one.

    Raises:
        Problem: something that is no artifact is in the way (it would be deleted), or the body made a link.
    """
    folder = folder.resolve()  # a link to a folder on another disk stays a link
    _require_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{glob.escape(folder.name)}.*.writing"):
        shutil.rmtree(left_over, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".writing", dir=folder.parent))
    try:
        beside.chmod(0o755)
        yield beside
        _seal(beside, facts)
        _swap_in(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check(folder: Path, trusted: Container[str] = ()) -> dict[str, Any]:
    """Return the manifest of a whole artifact.

    Args:
        folder: the artifact's.
        trusted: names of files whose bytes are known to be the manifest's, and are not read again.

    What the hub's client and operating systems put beside a download (``.cache``, ``.gitattributes``, ``.DS_Store``) is
    not looked at.

    Raises:
        Problem: no artifact there, or a file is missing, extra, no plain file, of another size, or of another
            SHA-256; or the manifest is not to be trusted (see :func:`read_manifest`).
    """
    manifest = read_manifest(folder)
    listed = manifest["files"]
    mend = _MEND.get(str(manifest.get("kind")), "build the artifact again")
    present = _plain_files(folder, listed)
    for name in present:
        if name not in listed:
            raise Problem(f"{folder}: {name!r} is not in the manifest; {mend}")
    for name, entry in listed.items():
        path = folder / name
        if name not in present:
            raise Problem(f"{path}: missing; {mend}")
        if path.stat().st_size != entry["bytes"]:
            raise Problem(f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}; {mend}")
    read = [name for name in listed if name not in trusted]
    for name, found in zip(read, _hashes([folder / name for name in read]), strict=True):
        if found != listed[name]["sha256"]:
            raise Problem(f"{folder / name}: its SHA-256 is not the manifest's; {mend}")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest without looking at the files it lists.

    Raises:
        Problem: there is none, it cannot be read, it names a file outside the folder, or an entry of its table is
            not size and SHA-256.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise Problem(f"{folder}: no artifact here (no {MANIFEST}); run the stage that makes it, or dvc repro")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise Problem(f"{path}: not a manifest (no table of files); build the artifact again")
    for name, entry in manifest["files"].items():
        # Published folders come from strangers: nobody is to open what such a name leads to.
        if not _is_inside(name):
            raise Problem(f"{path}: names {name!r}, which is no file in this folder; do not use it")
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or type(entry.get("sha256")) is not str:
            raise Problem(f"{path}: does not give bytes and sha256 of {name!r}; build the artifact again")
    return manifest


def fingerprint(folder: Path) -> str:
    """SHA-256 of an artifact's manifest, which covers every byte of the artifact."""
    read_manifest(folder)
    return sha256(folder / MANIFEST)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(paths: list[Path]) -> list[str]:
    """SHA-256 of files, several at a time: Python lets other threads run meanwhile."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(sha256, paths))


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        Problem: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: missing; run the stage that writes it, or dvc repro") from None
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: not JSON ({error})") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, beside its place and renamed. NaN becomes null, which JSON has instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    text = json.dumps(_nan_to_null(value), indent=2, sort_keys=True, allow_nan=False)
    beside.write_text(text + "\n", encoding="utf-8")
    beside.chmod(0o644)
    os.replace(beside, path)


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_null(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _require_replaceable(folder: Path) -> None:
    """Refuse to write over what is no artifact: a mistyped ``--out`` must not cost anybody their files.

    Raises:
        Problem: a file is there, or a folder that holds something but no manifest.
    """
    vacant = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not vacant and not (folder / MANIFEST).is_file():
        raise Problem(f"{folder}: in the way, and no artifact (no {MANIFEST}); move it, or write elsewhere")


def _plain_files(folder: Path, listed: Container[str] | None = None) -> dict[str, Path]:
    """Return every file below a folder, but for its manifest, by the name that the manifest gives it.

    Args:
        folder: the artifact's.
        listed: names in its manifest, where it has one: of others, those that are known to be put beside are left out.

    Raises:
        Problem: something there is neither a plain file nor a folder. What a link leads to can lie anywhere and
            change after it was looked at; reading a pipe waits for ever.
    """
    found = {}
    for place, folders, files in os.walk(folder):
        for own in sorted([*folders, *files]):
            path = Path(place, own)
            name = path.relative_to(folder).as_posix()
            if listed is not None and name not in listed and _is_put_beside(own):
                if own in folders:
                    folders.remove(own)  # and nothing in it is looked at
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise Problem(f"{folder}: {name!r} is a link or a special file; an artifact holds plain files only")
            if path.is_file() and name != MANIFEST:
                found[name] = path
    return dict(sorted(found.items()))


def _is_put_beside(name: str) -> bool:
    return name in _PUT_BESIDE or name.startswith("._")


def _is_inside(name: str) -> bool:
    """Whether a name is a plain relative path, on every system, and not that of the manifest itself."""
    parts = name.split("/")
    return name.isprintable() and not {"", ".", ".."} & set(parts) and not set("\\:") & set(name) and name != MANIFEST


def _seal(folder: Path, facts: Mapping[str, Any]) -> None:
    present = _plain_files(folder)
    for path in present.values():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    hashes = _hashes(list(present.values()))
    files = {
        name: {"bytes": path.stat().st_size, "sha256": found}
        for (name, path), found in zip(present.items(), hashes, strict=True)
    }
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    write_json(folder / MANIFEST, {**facts, "files": files})
    with (folder / MANIFEST).open("rb") as file:
        os.fsync(file.fileno())


def _swap_in(beside: Path, folder: Path) -> None:
    """Put ``beside`` in place of ``folder``; what was there before ends up at ``beside``."""
    if not folder.exists():
        os.rename(beside, folder)
    elif not _exchange(beside, folder):
        # No atomic exchange on this system: for a moment there is no artifact, never half of one.
        away = beside.with_suffix(".replaced.writing")
        os.rename(folder, away)
        try:
            os.rename(beside, folder)
        except BaseException:
            os.rename(away, folder)
            raise
        shutil.rmtree(away, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Atomically exchange two folders (Linux renameat2); False where the system cannot."""
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
