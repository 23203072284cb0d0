"""Parameters for single nodes, by name or by a pattern as file names have them: ``resblocks.9.*``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from qwen_omni_onnx.common.errors import UserError

__all__ = ["pick", "require_matches"]

T = TypeVar("T")


def pick(table: Mapping[str, T], name: str) -> T | None:
    """Return what the first pattern that matches says of a node; None where none does."""
    return next((value for pattern, value in table.items() if fnmatchcase(name, pattern)), None)


def require_matches(key: str, table: Mapping[str, object], names: Collection[str], kind: str = "MatMul") -> None:
    """Check that every pattern matches a node.

    Args:
        key: where the patterns stand in ``params.yaml``.
        table: the patterns.
        names: of the nodes.
        kind: what they are.

    Raises:
        UserError: one matches none.
    """
    for pattern in table:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{key}: no {kind} named {pattern}; there are {', '.join(sorted(names))}")
