"""What ``verify`` reads in a published manifest, held against what it must be: a stranger may have written it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common.errors import UserError

__all__ = ["STEM", "require_types"]

STEM = re.compile(r"\w[\w.-]*", re.ASCII)
"""What the file stem of a graph looks like, and the name of a folder: a stranger's names become paths."""


def require_types(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest whose ``interface`` and ``quantization`` are not what ``docs/format.md`` says.

    Raises:
        UserError: One is missing, or of another type; or a graph has a name that is no plain file's.
    """
    for key, whole in (("interface", _is_interface), ("quantization", _is_table)):
        if key not in manifest:
            raise UserError(f"{folder}: its manifest has no {key!r}: published by an older version; publish again")
        table = manifest[key]
        if not isinstance(table, dict) or not all(STEM.fullmatch(stem) and whole(table[stem]) for stem in table):
            raise UserError(f"{folder}: {key} in its manifest is not what it must be; do not use it")
    if not manifest["interface"]:
        raise UserError(f"{folder}: its manifest names no graph; do not use it")


def _is_interface(value: Any) -> bool:
    """Whether a value is the ports of a graph: ``{"inputs": [...], "outputs": [...]}``."""
    return isinstance(value, dict) and all(_is_list_of(value.get(way), _is_port) for way in ("inputs", "outputs"))


def _is_port(value: Any) -> bool:
    named = isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "dtype"))
    return named and _is_list_of(value.get("shape"), lambda axis: type(axis) in (int, str))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list_of(value: Any, whole: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(whole, value))
