"""What memory an export took: written by the process itself at its end, read where it is judged."""

from __future__ import annotations

from pathlib import Path

from omni.reports import BuildMemory, ExportReport
from omni.resources import peak_bytes
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["read", "record"]


def record(name: str, folder: Path, libraries_bytes: int) -> None:
    """Write ``reports/COMPONENT/export.json``: the peak of this process until now, and of which artifact.

    Args:
        name: Name of the component.
        folder: The artifact, in its place.
        libraries_bytes: The peak before the work began, when all that it imports was there.
    """
    memory = BuildMemory(libraries_bytes, peak_bytes())
    ExportReport(component=name, artifacts={"onnx": artifact.fingerprint(folder)}, memory=memory).write()


def read(name: str, folder: Path) -> BuildMemory:
    """Return the memory of the process that exported an artifact.

    Raises:
        UserError: Nothing is recorded, or of another artifact than is there.
    """
    found = ExportReport.read(name)
    if found.artifacts != {"onnx": artifact.fingerprint(folder)}:
        path = ExportReport.path(name)
        raise UserError(f"{path}: is of another build than {folder}; run python -m export {name} again")
    return found.memory
