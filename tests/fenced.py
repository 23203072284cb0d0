"""Fenced blocks and tables of Markdown."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["blocks", "first_columns"]


def blocks(document: Path) -> list[tuple[str, str]]:
    """Fenced blocks, in order: language and content."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)


def first_columns(printed: str) -> list[list[str]]:
    """Return the names in each Markdown table, below its head."""
    found: list[list[str]] = []
    inside = False
    for line in printed.splitlines():
        if line.startswith("| ") and not inside:
            found.append([])
        elif line.startswith("| ") and not line.startswith("| -"):
            found[-1].append(line.split("|")[1].strip())
        inside = line.startswith("| ")
    return found
