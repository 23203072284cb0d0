"""A folder that holds a release: on another disk, or on a share."""

from __future__ import annotations

import os
from pathlib import Path

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sources import SMALL

__all__ = ["Folder"]

_BLOCK = 2**22


class Folder:
    """A folder; see :class:`qwen_omni_onnx.sources.Source`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        if not root.is_dir():
            raise UserError(
                f"{root}: no such folder; give one that holds a release, or hf://OWNER/REPO, oci://HOST/NAME"
            )

    def paths(self) -> list[str]:
        """Return the paths of all files in it."""
        found = (Path(folder, name) for folder, _, names in os.walk(self._root) for name in names)
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def read(self, path: str) -> bytes:
        """Return the content of a small file."""
        place = self._plain(path)
        if place.stat().st_size > SMALL:
            raise UserError(f"{place}: {place.stat().st_size} bytes; {SMALL} is the most that is taken")
        return place.read_bytes()

    def fetch(self, path: str, place: Path, nbytes: int) -> None:
        """Copy a file from where an earlier copy of it ends."""
        there = place.stat().st_size if place.is_file() else 0
        with self._plain(path).open("rb") as read, place.open("ab") as written:
            read.seek(there)
            while there < nbytes and (block := read.read(min(_BLOCK, nbytes - there))):
                written.write(block)
                there += len(block)

    def _plain(self, path: str) -> Path:
        place = self._root / path
        if not place.is_file() or place.is_symlink():
            raise UserError(f"{place}: no plain file; the release is not whole")
        return place
