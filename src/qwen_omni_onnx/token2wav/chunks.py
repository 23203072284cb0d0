"""How what is long is cut: mel frames for the vocoder, blocks of them for the DiT."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

__all__ = ["chunks"]


def chunks(length: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Cut ``length`` into chunks of about equal size, none longer than ``chunk_size``."""
    count = max(1, -(-length // chunk_size))
    edges = [length * number // count for number in range(count + 1)]
    yield from itertools.pairwise(edges)
