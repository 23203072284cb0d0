"""The cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["core_groups", "restricted", "usable_cores"]

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable_cores() -> int:
    """Return the number of physical cores that this process may use; of logical ones where that is not known."""
    return len(core_groups())


def core_groups() -> list[list[int]]:
    """Return the logical cores that this process may use, those of one physical core together."""
    groups: dict[str, list[int]] = {}
    for number in _allowed():
        try:
            group = Path(_SIBLINGS.format(number)).read_text()
        except OSError:
            group = str(number)
        groups.setdefault(group, []).append(number)
    return list(groups.values())


def restricted() -> bool:
    """Return whether this process may use fewer cores than there are: ``taskset``, a container, a share of a node."""
    return len(_allowed()) < (os.cpu_count() or 1)


def _allowed() -> list[int]:
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0))
