"""Folders and files that a piece of work reads, on the way to the nodes of a cluster: known by their content."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qwen_omni_onnx.common import artifact, locks
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Absent", "Shipment", "chunks", "locate", "node_folder", "shipment"]

_CHUNK = 64 * 2**20  # bytes of an object in Ray's store


class Absent(Exception):
    """A node neither sees what a piece needs nor was sent it."""


@dataclass(frozen=True)
class Shipment:
    """A folder or a file.

    Attributes:
        path: Path as the work names it.
        seen_at: Its whole path on the machine that has it.
        files: SHA-256 and size of each file by its name in the folder; of a single file, the name is empty.
        sent: For each file, references to its bytes in the object store; None: nodes see the path themselves.
    """

    path: Path
    seen_at: Path
    files: Mapping[str, tuple[str, int]]
    sent: Mapping[str, list[Any]] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()


def shipment(path: Path) -> Shipment:
    """Return what is at a path. Files that an artifact's manifest lists are not read.

    Raises:
        UserError: Nothing is there.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; nothing to share with workers")
    return Shipment(path, path.resolve(), _files(path))


def chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in parts that fit an object store."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def locate(found: Shipment, fetch: Callable[[Any], bytes], node: str) -> Path:
    """Return where this node has a shipment; what it does not see, it fetches once, whoever asks first.

    Args:
        found: The shipment.
        fetch: Returns the bytes behind a reference.
        node: Name of this node.

    Raises:
        Absent: The node does not see it, and it was not sent.
        UserError: It arrived with other bytes than it left with, or there is no place for it.
    """
    with contextlib.suppress(OSError, UserError):
        if found.seen_at.exists() and _files(found.seen_at) == found.files:
            return found.seen_at
    place = node_folder(node) / found.digest
    with _locked(place.with_suffix(".lock")):
        if not place.exists():
            if found.sent is None:
                raise Absent(str(found.path))
            with locks.temporary_folder(place.parent) as beside:
                for name, references in found.sent.items():
                    _write(beside / (name or found.path.name), references, fetch, found.files[name])
                beside.rename(place)
    return place / found.path.name if "" in found.files else place


def node_folder(node: str) -> Path:
    """Return this node's folder for what is sent to it: several nodes may share a machine."""
    folder = Path(tempfile.gettempdir()) / f"qwen-omni-onnx-{os.getuid()}" / node
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _files(path: Path) -> dict[str, tuple[str, int]]:
    """Return SHA-256 and size of each file: an artifact's manifest knows those of its own."""
    if not path.is_dir():
        return {"": (artifact.sha256(path), path.stat().st_size)}
    listed = artifact.read_manifest(path)["files"] if (path / artifact.MANIFEST).is_file() else {}
    found = {}
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name, size = file.relative_to(path).as_posix(), file.stat().st_size
        known = listed.get(name)
        found[name] = (known["sha256"] if known and known["bytes"] == size else artifact.sha256(file), size)
    return found


def _write(path: Path, references: list[Any], fetch: Callable[[Any], bytes], expected: tuple[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for reference in references:
            file.write(fetch(reference))
    if (artifact.sha256(path), path.stat().st_size) != expected:
        raise UserError(f"{path.name}: arrived with other bytes than it was sent with; it changed meanwhile, try again")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
