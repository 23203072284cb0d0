"""Does a second build give the same bytes? A wrong one that no distance metric would see turns up here."""

from __future__ import annotations

from pathlib import Path

from omni import resources
from qwen_omni_onnx.common import artifact, output
from validate.measured import MeasuredComponent

__all__ = ["different", "rebuild"]

_KINDS = {"export": "onnx", "quantize": "int8"}  # what each stage writes


def rebuild(stage: str, measured: MeasuredComponent) -> tuple[int, list[str]]:
    """Run a stage in a process of its own, into a folder that is thrown away.

    Args:
        stage: ``export`` or ``quantize``.
        measured: The component.

    Returns:
        The process's peak memory in bytes, and the names of files that are not the same bytes as the artifact's.

    Raises:
        UserError: the process failed or was killed.
    """
    built = measured.folders[_KINDS[stage]]
    with output.temporary_folder(Path("models")) as scratch:
        peak = resources.measure_module(stage, measured.name, "--out", str(scratch / built.name))
        return peak, _different(scratch / built.name, built)


def different(measured: MeasuredComponent) -> list[str]:
    """Export and quantize again; return the files that turn out otherwise: of export, or else of quantize.

    Raises:
        UserError: as :func:`rebuild`.
    """
    for stage, kind in _KINDS.items():
        if other := rebuild(stage, measured)[1]:
            return [str(measured.folders[kind] / name) for name in other]
    return []


def _different(one: Path, other: Path) -> list[str]:
    """Names of files that two artifacts do not share, byte for byte; that of the manifest, if nothing else differs."""
    if artifact.fingerprint(one) == artifact.fingerprint(other):
        return []
    files, others = (artifact.read_manifest(folder)["files"] for folder in (one, other))
    return sorted(name for name in files | others if files.get(name) != others.get(name)) or [artifact.MANIFEST]
