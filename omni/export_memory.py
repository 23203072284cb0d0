"""What memory an export took: written by the process itself at its end, read where it is judged."""

from __future__ import annotations

from pathlib import Path

from omni.resources import peak_bytes
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["read", "record"]

_FIELDS = {"artifact", "libraries_bytes", "peak_bytes"}


def record(name: str, folder: Path, libraries_bytes: int) -> None:
    """Write ``reports/COMPONENT/export.json``: the peak of this process until now, and of which artifact.

    Args:
        name: of the component.
        folder: the artifact, in its place.
        libraries_bytes: the peak before the work began, when all that it imports was there.
    """
    found = {"artifact": artifact.fingerprint(folder), "libraries_bytes": libraries_bytes, "peak_bytes": peak_bytes()}
    artifact.write_json(_place(name), found)


def read(name: str, folder: Path) -> dict[str, int]:
    """Return ``libraries_bytes`` and ``peak_bytes`` of the process that exported an artifact.

    Raises:
        UserError: nothing is recorded, or of another artifact than is there.
    """
    path, again = _place(name), f"run python -m export {name} again"
    found = artifact.read_json(path)
    if not isinstance(found, dict) or set(found) != _FIELDS:
        raise UserError(f"{path}: is not what this version writes; {again}")
    if found.pop("artifact") != artifact.fingerprint(folder):
        raise UserError(f"{path}: is of another build than {folder}; {again}")
    return found


def _place(name: str) -> Path:
    return Path("reports") / name / "export.json"
