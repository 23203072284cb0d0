"""Published folders, checked once: gigabytes are hashed when a folder is first used, and again where it changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import float32_files
from qwen_omni_onnx.common.user_cache import cache_folder

__all__ = ["check_once", "check_published"]

_Times = dict[str, list[int]]


def check_once(folder: Path) -> dict[str, Any]:
    """Return the manifest of a published folder, every file of which was found to be as it says.

    A file is read if it never was, or if its size or one of its times is another than when it was read last (of
    modification, and of change of anything about it, which no program can set back). What was read is noted in
    ``$XDG_CACHE_HOME/qwen-omni-onnx``; where there is no such place, or none to write to, all files are read each time.

    Raises:
        UserError: The same as :func:`qwen_omni_onnx.common.artifact.check`.
    """
    times = _times(folder, artifact.read_manifest(folder))
    note, manifest = _note(folder), artifact.fingerprint(folder)
    noted = _noted(note, manifest) if note else {}
    trusted = {name for name, found in times.items() if noted.get(name) == found}
    checked = check_published(folder, trusted)
    if note and len(trusted) < len(times):
        with contextlib.suppress(OSError, UserError):
            artifact.write_json(note, {"manifest": manifest, "files": times})
    return checked


def check_published(folder: Path, trusted: Container[str] = ()) -> dict[str, Any]:
    """Return the manifest of a published folder whose files are as it says; float32 graphs may have been left out.

    Args:
        folder: The folder.
        trusted: Names of files that are not read again.

    Raises:
        UserError: The same as :func:`qwen_omni_onnx.common.artifact.check`.
    """
    return artifact.check(folder, trusted, float32_files(artifact.read_manifest(folder)))


def _times(folder: Path, manifest: dict[str, Any]) -> _Times:
    """Return size and times of each file, taken before it is read: a change meanwhile shows the next time."""
    found = {}
    for name in manifest["files"]:
        with contextlib.suppress(OSError):  # what is missing is told by `artifact.check`
            status = (folder / name).stat()
            found[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


def _note(folder: Path) -> Path | None:
    """Return where the note on a folder is; None where there is no place for it."""
    cache = cache_folder()
    return cache / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()}.json" if cache else None


def _noted(note: Path, manifest: str) -> _Times:
    """Return what was noted of the files of this very manifest."""
    try:
        content = artifact.read_json(note)
        files = content["files"] if content["manifest"] == manifest else {}
    except (UserError, OSError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}
