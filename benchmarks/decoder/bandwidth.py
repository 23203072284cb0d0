"""How fast this machine reads its memory, and how much of it a step has to read."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir

from omni.decoder import DecoderSizes

__all__ = ["Reader", "cache_bytes", "copy_seconds", "step_bytes"]

BUFFER_BYTES = 2**30  # far more than the caches of any processor
_TABLES = ("cos_cache", "sin_cache")  # of which a step reads a row
_COPIES = 5


class Reader:
    """Reads a buffer from end to end, one part of it on each thread: the largest value, by NumPy.

    On one core of AMD Zen 4, that was as fast as a sum, a scalar product or a maximum of other types, within 5 %: the
    memory sets the pace, not the arithmetic.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        # Ones: zeros would be one page of the kernel's, mapped again and again.
        self._parts = np.array_split(np.ones(BUFFER_BYTES // 4, np.float32), threads)
        self._threads = ThreadPoolExecutor(threads)
        self.nbytes = sum(part.nbytes for part in self._parts)

    def __call__(self) -> None:
        """Read all of it once."""
        for _ in self._threads.map(np.max, self._parts):
            pass


def step_bytes(graph: Path, size: DecoderSizes, past: int) -> int:
    """Return how many bytes a step has to read at least: all weights but tables, and the keys and values of a past.

    Args:
        graph: file.
        size: widths of the decoder.
        past: tokens before the step.
    """
    initializers = ir.load(graph).graph.initializers
    weights = sum(
        value.const_value.nbytes for name, value in initializers.items() if value.const_value and name not in _TABLES
    )
    return weights + cache_bytes(size, past)


def cache_bytes(size: DecoderSizes, tokens: int) -> int:
    """Return the size of keys and values of so many tokens, in float32."""
    return 2 * size.layers * size.kv_heads * size.head_dim * tokens * 4


def copy_seconds(nbytes: int) -> float:
    """Return how long it takes to copy so many bytes, at best, on one thread."""
    source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    taken = []
    for _ in range(_COPIES):
        began = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - began)
    return min(taken)
