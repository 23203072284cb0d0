"""Does a second build give the same bytes? A wrong one that no distance metric would see turns up here."""

from __future__ import annotations

from pathlib import Path

from omni import resources
from omni.build_memory import Stage
from omni.component import COMPOSED_OF
from qwen_omni_onnx.common import artifact, output
from validate.measured import MeasuredComponent

__all__ = ["different", "rebuild"]

_KINDS: dict[Stage, str] = {"export": "onnx", "quantize": "quantized"}  # what each stage writes


def rebuild(stage: Stage, measured: MeasuredComponent) -> tuple[int, list[str]]:
    """Run a stage in a process of its own, into a folder that is thrown away.

    Args:
        stage: Which one.
        measured: The component, which has weights of its own.

    Returns:
        The process's peak memory in bytes, and the names of files that are not the same bytes as the artifact's.

    Raises:
        UserError: The process failed or was killed.
    """
    built = measured.folders[_KINDS[stage]]
    with output.temporary_folder(Path("models")) as scratch:
        peak = resources.measure_module(stage, measured.name, "--out", str(scratch / built.name))
        return peak, _different(scratch / built.name, built)


def different(measured: MeasuredComponent) -> list[str]:
    """Export and quantize, or compose, a second time; return the files that turn out otherwise, of the first that do.

    Raises:
        UserError: As :func:`rebuild`.
    """
    if measured.name in COMPOSED_OF:
        return _composed_differently(measured)
    for stage, kind in _KINDS.items():
        if other := rebuild(stage, measured)[1]:
            return [str(measured.folders[kind] / name) for name in other]
    return []


def _composed_differently(measured: MeasuredComponent) -> list[str]:
    with output.temporary_folder(Path("models")) as scratch:
        composed = scratch / "composed"
        resources.measure_module("compose", measured.name, "--out", str(composed))
        for kind in _KINDS.values():
            if other := _different(composed / kind / measured.name, measured.folders[kind]):
                return [str(measured.folders[kind] / name) for name in other]
    return []


def _different(one: Path, other: Path) -> list[str]:
    """Names of files that two artifacts do not share, byte for byte; that of the manifest, if nothing else differs."""
    if artifact.fingerprint(one) == artifact.fingerprint(other):
        return []
    files, others = (artifact.read_manifest(folder)["files"] for folder in (one, other))
    return sorted(name for name in files | others if files.get(name) != others.get(name)) or [artifact.MANIFEST]
