"""Where a user's caches are: what is kept there saves time, and nothing depends on it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path | None:
    """Return ``$XDG_CACHE_HOME/qwen-omni-onnx``; None where the user has no home, or one without a whole path."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification passes over such a value, too
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # no HOME, and a user that the system does not know, as in a container
            return None
    return base / "qwen-omni-onnx" if base.is_absolute() else None
