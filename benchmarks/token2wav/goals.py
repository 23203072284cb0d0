"""What this project promises of token2wav's speed, and whether this run keeps it."""

from __future__ import annotations

from typing import Any

from benchmarks.token2wav.ways import FLOAT32, INT8, PYTORCH

__all__ = ["goals"]

# Of all evaluations and the vocoder: how many times as fast as PyTorch, by seconds of speech; quadratic, it falls back.
_FLOAT32_OVER_PYTORCH = {"5": 2.5, "30": 5.0}
_INT8_OVER_FLOAT32 = 2.3  # at any length


def goals(ways: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each goal that has something to do with the lengths in ``ways``, what was found, and whether it is met.

    Args:
        ways: the rows of the comparison.
    """
    whole = {row["way"]: row["whole"] for row in ways}
    limits = [(FLOAT32, PYTORCH, length, limit) for length, limit in _FLOAT32_OVER_PYTORCH.items()]
    limits += [(INT8, FLOAT32, length, _INT8_OVER_FLOAT32) for length in whole[INT8]]
    judged = []
    for way, against, length, limit in limits:
        if length in whole[way]:
            found = whole[way][length]["speed"][against]
            met = found["speedup"] >= limit
            judged.append({"way": way, "against": against, "seconds": length, "limit": limit, **found, "met": met})
    return judged
