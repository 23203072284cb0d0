"""What a run that was killed had done already, for the next run of the same work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qwen_omni_onnx.common import locks, output

__all__ = ["part_of", "resumed"]

_PLAN = "plan.json"


def part_of(whole: Path) -> Path:
    """Return the folder ``.NAME.part`` beside an artifact, for what is done of it."""
    return whole.parent / f".{whole.name}.part"


@contextlib.contextmanager
def resumed(place: Path, plan: str) -> Iterator[None]:
    """Keep what a folder holds for the body if it is of the same work; drop it if not, and after success.

    Args:
        place: Folder that this process has claimed (:func:`qwen_omni_onnx.common.locks.claimed`).
        plan: What identifies the work.
    """
    file = place / _PLAN
    if not file.is_file() or file.read_text(encoding="utf-8") != plan:
        locks.empty(place)
        with output.writing(file) as beside:
            beside.write_text(plan, encoding="utf-8")
    yield
    file.unlink()  # first: a kill while the rest is removed leaves nothing that would be taken up
    locks.empty(place)
