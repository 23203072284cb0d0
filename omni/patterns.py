"""Tables by name, or by a pattern as file names have them: ``resblocks.9.*``. The first pattern that matches counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from qwen_omni_onnx.common.errors import UserError

__all__ = ["first_match", "require_matches", "unmatched"]

T = TypeVar("T")


def first_match(table: Mapping[str, T], name: str) -> T | None:
    """Return the entry of the first pattern that matches a name; None where none does."""
    return next((value for pattern, value in table.items() if fnmatchcase(name, pattern)), None)


def unmatched(table: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the patterns that match none of the names."""
    return [pattern for pattern in table if not any(fnmatchcase(name, pattern) for name in names)]


def require_matches(key: str, table: Iterable[str], names: Collection[str], kind: str = "MatMul") -> None:
    """Check that every pattern matches a node: one that matches none is misspelt, and would change nothing.

    Args:
        key: Where the patterns stand in ``params.yaml``.
        table: Patterns.
        names: Names of the nodes.
        kind: Operators of the nodes.

    Raises:
        UserError: A pattern matches none.
    """
    for pattern in unmatched(table, names):
        raise UserError(f"{key}: no {kind} named {pattern}; there are {', '.join(sorted(names))}")
