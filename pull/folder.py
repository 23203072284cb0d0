"""Read a checkpoint in a folder, also one whose files are links into a cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common.errors import UserError

__all__ = ["FolderSnapshot"]

_BLOCK_BYTES = 4 * 2**20
_SMALL_BYTES = 64 * 2**20  # of a small file, which is read whole; the 7B's largest, its tokenizer, has 7 MB
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})")  # in the cache of huggingface_hub


class FolderSnapshot:
    """A checkpoint in a folder; see :class:`pull.snapshot.Snapshot`.

    Args:
        folder: The folder.

    Raises:
        UserError: There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(
                f"model.source: {folder}: no such folder; give synthetic, hub, or a folder with a checkpoint"
            )
        self._folder = folder

    def describe(self) -> dict[str, Any]:
        """Return the folder's name, or repository and commit if it is in the cache of huggingface_hub."""
        # The folder's own path stays out: it would tell a published artifact's users about this machine.
        cached = _CACHED.fullmatch("/".join(self._folder.resolve().parts[-3:]))
        if cached:
            return {"checkpoint": f"{cached[1]}/{cached[2]}", "kind": "folder", "commit": cached[3]}
        return {"checkpoint": self._folder.name or self._folder.resolve().name or "folder", "kind": "folder"}

    def small_file(self, name: str) -> bytes | None:
        """Return a whole file; None if there is none of that name.

        Raises:
            UserError: It is too large to be a small file; or it is a link that leads out of the checkpoint: what is
                read here is published, and a checkpoint of a stranger's may link to any file of the user's.
        """
        if not os.path.lexists(self._folder / name):
            return None
        path, whole = self._file(name), self._folder.resolve()
        if whole.parent.name == "snapshots":  # in a cache, beside the files that it links to
            whole = whole.parents[1]
        if not path.resolve().is_relative_to(whole):
            raise UserError(f"{path}: a link that leads out of the checkpoint; copy the file there if it is yours")
        if path.stat().st_size > _SMALL_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; it should have at most {_SMALL_BYTES:,}")
        return path.read_bytes()

    def file_bytes(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            UserError: There is no such file.
        """
        return self._file(name).stat().st_size

    def version(self, name: str) -> str:
        """Return the resolved path, the size and the time of a file."""
        path = self._file(name).resolve()
        return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}"

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Pass bytes [start, end) of a file to ``write(offset, block)``.

        Raises:
            UserError: The file ends before ``end``.
        """
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(_BLOCK_BYTES, end - start))
                if not block:
                    raise UserError(
                        f"{self._folder / name}: ends at byte {start}, before the {end} that its header says"
                    )
                write(start, block)
                start += len(block)

    def _file(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            link = " (a link that leads nowhere)" if path.is_symlink() else ""
            raise UserError(f"{path}: missing{link}; the snapshot is not whole")
        return path
