"""Checks that a second build gives the same bytes, which detects a wrong byte that no distance metric would show."""

from __future__ import annotations

from pathlib import Path

from omni import resources
from omni.build_memory import Stage
from omni.component import COMPOSED_OF
from qwen_omni_onnx.common import artifact, output
from validate.measured import MeasuredComponent

__all__ = ["different", "rebuild"]

_KINDS: dict[Stage, str] = {"export": "onnx", "quantize": "quantized"}  # kind of artifact that each stage writes


def rebuild(stage: Stage, measured: MeasuredComponent) -> tuple[int, list[str]]:
    """Run a stage in a process of its own, into a temporary folder.

    Args:
        stage: The stage.
        measured: The component, which has weights of its own.

    Returns:
        The process's peak memory in bytes, and the names of files that differ from the artifact's.

    Raises:
        UserError: The process failed or was killed.
    """
    built = measured.folders[_KINDS[stage]]
    with output.temporary_folder(Path("models")) as scratch:
        peak = resources.measure_module(stage, measured.name, "--out", str(scratch / built.name))
        return peak, _different(scratch / built.name, built)


def different(measured: MeasuredComponent) -> list[str]:
    """Export, compensate and quantize, or compose, a second time; return the files of the first artifact that differs.

    Raises:
        UserError: A process failed or was killed.
    """
    if measured.name in COMPOSED_OF:
        return _composed_differently(measured)
    for stage, kind in _KINDS.items():
        if names := rebuild(stage, measured)[1]:
            return [str(measured.folders[kind] / name) for name in names]
    return _compensated_differently(measured)


def _compensated_differently(measured: MeasuredComponent) -> list[str]:
    built = Path("models/compensated") / measured.name
    if not built.is_dir() or not artifact.read_manifest(built)["files"]:
        return []
    with output.temporary_folder(Path("models")) as scratch:
        resources.measure_module("quantize.compensate", measured.name, "--out", str(scratch / built.name))
        return [str(built / name) for name in _different(scratch / built.name, built)]


def _composed_differently(measured: MeasuredComponent) -> list[str]:
    with output.temporary_folder(Path("models")) as scratch:
        composed = scratch / "composed"
        resources.measure_module("compose", measured.name, "--out", str(composed))
        for kind in _KINDS.values():
            if names := _different(composed / kind / measured.name, measured.folders[kind]):
                return [str(measured.folders[kind] / name) for name in names]
    return []


def _different(one: Path, other: Path) -> list[str]:
    """Return the names of files that differ between two artifacts; the manifest's name if only that differs."""
    if artifact.fingerprint(one) == artifact.fingerprint(other):
        return []
    files, others = (artifact.read_manifest(folder)["files"] for folder in (one, other))
    return sorted(name for name in files | others if files.get(name) != others.get(name)) or [artifact.MANIFEST]
