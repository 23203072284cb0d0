"""Tables whose keys are names or glob patterns, such as ``resblocks.9.*``; the first key that matches counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from qwen_omni_onnx.common.errors import UserError

__all__ = ["first_match", "require_matches", "unmatched"]

T = TypeVar("T")


def first_match(table: Mapping[str, T], *names: str) -> T | None:
    """Return the entry of the first pattern that matches one of the names of a thing; None if no pattern does."""
    matching = (value for pattern, value in table.items() if any(fnmatchcase(name, pattern) for name in names))
    return next(matching, None)


def unmatched(table: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the patterns that match none of the names."""
    return [pattern for pattern in table if not any(fnmatchcase(name, pattern) for name in names)]


def require_matches(key: str, table: Iterable[str], names: Collection[str], kind: str = "MatMul") -> None:
    """Check that every pattern matches a node: a misspelt one would silently change nothing.

    Args:
        key: Key of the patterns in ``params.yaml``.
        table: The patterns.
        names: Names of the nodes.
        kind: Operator type of the nodes, for the message.

    Raises:
        UserError: A pattern matches no node.
    """
    for pattern in unmatched(table, names):
        raise UserError(f"{key}: no {kind} named {pattern}; there are {', '.join(sorted(names))}")
