"""A checkpoint with another one's file of speakers: tools that merge or save a model leave it out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omni.schema import is_repository
from pull import speakers
from pull.client import hub_snapshot
from pull.folder import FolderSnapshot
from pull.snapshot import Snapshot
from qwen_omni_onnx.common.errors import UserError

__all__ = ["BorrowedSpeakers", "speakers_of"]


class BorrowedSpeakers:
    """See :class:`pull.snapshot.Snapshot`.

    Args:
        snapshot: All but the speakers.
        lender: The checkpoint that has the speakers.
        file: What their file is called there.
    """

    def __init__(self, snapshot: Snapshot, lender: Snapshot, file: str = speakers.FILE) -> None:
        self._snapshot, self._lender, self._file = snapshot, lender, file

    def describe(self) -> dict[str, Any]:
        return self._snapshot.describe()

    def small_file(self, name: str) -> bytes | None:
        return self._of(name).small_file(self._named(name))

    def file_bytes(self, name: str) -> int:
        return self._of(name).file_bytes(self._named(name))

    def version(self, name: str) -> str:
        return self._of(name).version(self._named(name))

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        self._of(name).read(self._named(name), start, end, write)

    def _of(self, name: str) -> Snapshot:
        return self._lender if name == speakers.FILE else self._snapshot

    def _named(self, name: str) -> str:
        return self._file if name == speakers.FILE else name


def speakers_of(snapshot: Snapshot, where: str) -> Snapshot:
    """Return a checkpoint with the speakers that ``model.speakers`` names.

    Args:
        snapshot: All but the speakers.
        where: A file, a folder that holds it, or a repository on the hub, whose main branch is read.

    Raises:
        UserError: There is no such thing.
    """
    path = Path(where)
    if path.is_file():
        return BorrowedSpeakers(snapshot, FolderSnapshot(path.parent), path.name)
    if path.is_dir():
        return BorrowedSpeakers(snapshot, FolderSnapshot(path))
    if path.suffix == ".pt" or not is_repository(where):
        raise UserError(f"model.speakers: {where}: no such file; give the path of the base model's {speakers.FILE}")
    return BorrowedSpeakers(snapshot, hub_snapshot(where, "main"))
