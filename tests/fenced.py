"""Fenced blocks of Markdown."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["blocks"]


def blocks(document: Path) -> list[tuple[str, str]]:
    """Fenced blocks, in order: language and content."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)
