"""A checkpoint as it lies somewhere: what has to be known of a repository or a folder to read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from qwen_omni_onnx.common.errors import UserError

__all__ = ["Snapshot", "exists", "read_bytes", "read_table", "table_of"]


class Snapshot(Protocol):
    """A checkpoint at one commit: a repository on a hub, or a folder."""

    def describe(self) -> dict[str, Any]:
        """Where it comes from, for ``source.json``."""

    def small_file(self, name: str) -> bytes | None:
        """A whole file, or None where the checkpoint has none of that name."""

    def file_bytes(self, name: str) -> int:
        """Size of a file in bytes; a file that is not there is a mistake of the user's."""

    def version(self, name: str) -> str:
        """Text that is another one when a shard's bytes are: what was fetched of the old ones is of no use then."""

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Pass bytes [start, end) of a file to ``write(offset, block)`` as they come."""


def read_bytes(snapshot: Snapshot, name: str, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file."""
    blocks: list[bytes] = []
    snapshot.read(name, start, end, lambda offset, block: blocks.append(block))
    return b"".join(blocks)


def table_of(checkpoint: str, name: str, content: bytes) -> dict:
    """Parse a file of JSON.

    Raises:
        UserError: it is none, or no object.
    """
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{checkpoint}: {name} is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise UserError(f"{checkpoint}: {name} is not a JSON object")
    return table


def read_table(snapshot: Snapshot, name: str) -> dict | None:
    """Return a file of JSON; None where the checkpoint has none of that name. Raises as :func:`table_of` does."""
    content = snapshot.small_file(name)
    return None if content is None else table_of(snapshot.describe()["checkpoint"], name, content)


def exists(snapshot: Snapshot, name: str) -> bool:
    """Tell whether a checkpoint has a file.

    Raises:
        UserError: that cannot be told: a link that leads nowhere, a hub that does not answer.
    """
    try:
        snapshot.file_bytes(name)
    except UserError:
        return snapshot.small_file(name) is not None
    return True
