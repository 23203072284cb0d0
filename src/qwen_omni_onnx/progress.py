"""How far a file has come: a line on a terminal, while it grows."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from qwen_omni_onnx.common.console import one_line

__all__ = ["growing"]

_INTERVAL = 0.5  # seconds


@contextlib.contextmanager
def growing(place: Path, nbytes: int, name: str) -> Iterator[None]:
    """Show how much of a file is there, if stderr is a terminal, until the body is done.

    Args:
        place: The file.
        nbytes: Its size when it is whole.
        name: What it is called.
    """
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def show() -> None:
        while not done.wait(_INTERVAL):
            with contextlib.suppress(OSError):
                there = place.stat().st_size
                said = one_line(f"{name}: {there / 1e6:,.0f} of {nbytes / 1e6:,.0f} MB")
                print(f"\r\033[K{said}", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)
