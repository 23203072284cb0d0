"""What building an artifact took: written by the process that built it, read where it is judged."""

from __future__ import annotations

from pathlib import Path

from omni import artifact
from omni.errors import Problem
from omni.resources import peak_bytes

__all__ = ["read", "record"]


def record(stage: str, name: str, folder: Path, libraries_bytes: int) -> None:
    """Write ``reports/COMPONENT/STAGE.json``: the peak of this process until now, and of which artifact.

    Args:
        stage: what built it.
        name: of the component.
        folder: the artifact, in its place.
        libraries_bytes: the peak before the stage began, when all that it imports was there.
    """
    found = {"artifact": artifact.fingerprint(folder), "libraries_bytes": libraries_bytes, "peak_bytes": peak_bytes()}
    artifact.write_json(_place(stage, name), found)


def read(stage: str, name: str, folder: Path) -> dict[str, int]:
    """Return ``libraries_bytes`` and ``peak_bytes`` of the process that built an artifact.

    Raises:
        Problem: nothing is recorded, or of another artifact than is there.
    """
    path = _place(stage, name)
    found = artifact.read_json(path)
    again = f"run python -m {stage} {name} again"
    if not isinstance(found, dict) or not {"artifact", "libraries_bytes", "peak_bytes"} <= set(found):
        raise Problem(f"{path}: is not what this version writes; {again}")
    if found.pop("artifact") != artifact.fingerprint(folder):
        raise Problem(f"{path}: is of another build than {folder}; {again}")
    return found


def _place(stage: str, name: str) -> Path:
    return Path("reports") / name / f"{stage}.json"
