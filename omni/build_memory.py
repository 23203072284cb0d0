"""What memory a stage took: written by the process itself at its end, read where it is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from omni.component import COMPOSED_OF
from omni.reports import BuildMemory, BuildReport, ExportReport, QuantizeReport
from omni.resources import peak_bytes
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Stage", "read", "record"]

Stage = Literal["export", "quantize"]
_REPORTS: dict[Stage, type[BuildReport]] = {"export": ExportReport, "quantize": QuantizeReport}


def record(name: str, stage: Stage, folder: Path, libraries_bytes: int) -> None:
    """Write ``reports/COMPONENT/STAGE.json``: the peak of this process until now, and of which artifact.

    Args:
        name: Name of the component.
        stage: What the process did: a process that composes does both, one after the other.
        folder: The artifact, in its place.
        libraries_bytes: The peak before the work began, when all that it imports was there.
    """
    memory = BuildMemory(libraries_bytes, peak_bytes())
    _REPORTS[stage](component=name, artifacts={stage: artifact.fingerprint(folder)}, memory=memory).write()


def read(name: str, stage: Stage, folder: Path) -> BuildMemory:
    """Return the memory of the process that made an artifact.

    Raises:
        UserError: Nothing is recorded, or of another artifact than is there.
    """
    found = _REPORTS[stage].read(name)
    if found.artifacts != {stage: artifact.fingerprint(folder)}:
        command = f"{'compose' if name in COMPOSED_OF else stage} {name}"
        raise UserError(f"{found.path(name)}: is of another build than {folder}; run python -m {command} again")
    return found.memory
