"""The interface of checkpoints, in a repository, in a folder or synthetic, and helpers that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from qwen_omni_onnx.common.errors import UserError

__all__ = ["Snapshot", "exists", "read_bytes", "read_table", "table_of"]


class Snapshot(Protocol):
    """A checkpoint at one commit: a repository on a hub, or a folder."""

    def describe(self) -> dict[str, Any]:
        """Return where the checkpoint comes from, for ``source.json``."""

    def small_file(self, name: str) -> bytes | None:
        """Return a whole file; None if the checkpoint has none of that name."""

    def file_bytes(self, name: str) -> int:
        """Return the size of a file in bytes; a missing file raises UserError."""

    def version(self, name: str) -> str:
        """Return a text that changes with a shard's bytes: what was fetched of the old ones is then dropped."""

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Pass bytes [start, end) of a file to ``write(offset, block)`` as they come."""


def read_bytes(snapshot: Snapshot, name: str, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file."""
    blocks: list[bytes] = []
    snapshot.read(name, start, end, lambda offset, block: blocks.append(block))
    return b"".join(blocks)


def table_of(checkpoint: str, name: str, content: bytes) -> dict:
    """Parse a file of JSON.

    Args:
        checkpoint: Name of the checkpoint.
        name: Name of the file.
        content: Content of the file.

    Raises:
        UserError: The content is not JSON, or not an object.
    """
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{checkpoint}: {name} is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise UserError(f"{checkpoint}: {name} is not a JSON object")
    return table


def read_table(snapshot: Snapshot, name: str) -> dict | None:
    """Return the object in a file of JSON; None if the checkpoint has none of that name.

    Args:
        snapshot: The checkpoint.
        name: Name of the file.

    Raises:
        UserError: See :func:`table_of`.
    """
    content = snapshot.small_file(name)
    return None if content is None else table_of(snapshot.describe()["checkpoint"], name, content)


def exists(snapshot: Snapshot, name: str) -> bool:
    """Return whether a checkpoint has a file.

    Args:
        snapshot: The checkpoint.
        name: Name of the file.

    Raises:
        UserError: A link leads nowhere, or the hub does not answer.
    """
    try:
        snapshot.file_bytes(name)
    except UserError:
        return snapshot.small_file(name) is not None
    return True
