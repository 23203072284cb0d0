"""Peak memory of a build stage: the stage's process records it when it ends, and ``validate memory`` reads it."""

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
    """Write ``reports/COMPONENT/STAGE.json``: this process's peak memory so far, and the artifact's fingerprint.

    Args:
        name: Name of the component.
        stage: Stage that the process ran; a process that composes runs both, one after the other.
        folder: Folder of the finished artifact.
        libraries_bytes: Peak memory after all imports, before the work began.
    """
    memory = BuildMemory(libraries_bytes, peak_bytes())
    _REPORTS[stage](component=name, artifacts={stage: artifact.fingerprint(folder)}, memory=memory).write()


def read(name: str, stage: Stage, folder: Path) -> BuildMemory:
    """Return the memory of the process that built an artifact.

    Raises:
        UserError: No memory is recorded, or the record is of another build of the artifact.
    """
    report = _REPORTS[stage].read(name)
    if report.artifacts != {stage: artifact.fingerprint(folder)}:
        command = f"{'compose' if name in COMPOSED_OF else stage} {name}"
        raise UserError(f"{report.path(name)}: is of another build than {folder}; run python -m {command} again")
    return report.memory
