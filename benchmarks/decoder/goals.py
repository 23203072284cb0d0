"""What this project promises of a Talker's step, and whether this run keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.decoder.bench import INT4

__all__ = ["goals"]

_BANDWIDTH = 0.75  # of what the machine can read, a step reads at least
_SAMPLING = 0.02  # of a step, sampling takes less


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each goal, what was found, and whether it is met; none but for the Talker at full depth.

    Args:
        found: ``component``, ``layers``, ``depth`` and ``rates``.
    """
    if found["component"] != "talker" or found["layers"] != found["depth"]:
        return []
    step = found["rates"]["steps"][INT4]
    share, sampling = step["share"], step["sampling"]["share"]
    return [
        {"of": "bandwidth", "way": INT4, "at_least": _BANDWIDTH, **share, "met": share["ratio"] >= _BANDWIDTH},
        {"of": "sampling", "way": INT4, "below": _SAMPLING, **sampling, "met": sampling["ratio"] < _SAMPLING},
    ]
