"""Codes that a run which was killed had computed already, for the next run of the same work."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import omni
import quantize
from omni.resumed import part_of, resumed
from qwen_omni_onnx.common import locks, output

__all__ = ["begun"]


@contextlib.contextmanager
def begun(out: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folder ``.NAME.part`` beside an artifact, which outlives a failure and is gone after success.

    What it holds is of the same facts and the same program; what others left is dropped.

    Args:
        out: The artifact that is made.
        facts: What it is made of.

    Raises:
        UserError: Another process makes the same artifact, or the disk is full.
    """
    place = part_of(out)
    with output.told(out, out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    plan = json.dumps({"facts": facts, "program": _program()}, sort_keys=True)
    with locks.claimed(place, out), output.told(out, place), resumed(place, plan):
        yield place


def _program() -> str:
    """Return a hash of the modules that compute what is kept."""
    digest = hashlib.sha256()
    for package in (omni, quantize):
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
