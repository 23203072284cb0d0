"""Work in a process of its own, which says through a pipe what came of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["in_a_process"]


def in_a_process(work: Callable[..., None], *arguments: Any) -> Any:
    """Run ``work(connection, *arguments)`` in a process of its own; return what it sends, or fail if it is killed."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        pytest.fail(f"{work.__name__} was killed, exit code {process.exitcode}")
    finally:
        process.join()
