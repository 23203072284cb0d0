"""What is validated: a component as built under ``models/``, or a published folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni import artifact, golden
from omni.component import Component, component, require_built
from omni.contract import GraphContract
from omni.errors import Problem
from omni.params import ComponentParams, load

__all__ = ["FLOAT", "QUANTIZED", "Subject", "from_published", "require_current", "subjects"]

FLOAT, QUANTIZED = "float32", "quantized"
REPORTS = Path("reports")


@dataclass(frozen=True)
class Subject:
    """One component with both its graphs.

    Attributes:
        name: of the component.
        component: its description.
        contract: interface of its graph, by the configuration it was built from.
        graphs: graph files by ``FLOAT`` and ``QUANTIZED``.
        golden: file of golden cases.
        folders: the artifacts that the above come from, by kind.
        quantization: what was done to each MatMul.
    """

    name: str
    component: Component
    contract: GraphContract
    graphs: dict[str, Path]
    golden: Path
    folders: dict[str, Path]
    quantization: dict[str, dict[str, str]]

    def fingerprints(self) -> dict[str, str]:
        """What a report about this subject is bound to."""
        return {kind: artifact.fingerprint(folder) for kind, folder in self.folders.items()}

    def report(self, measurement: str) -> Path:
        return REPORTS / self.name / f"{measurement}.json"

    def write_report(self, measurement: str, content: dict[str, Any]) -> None:
        artifact.write_json(
            self.report(measurement), {"component": self.name, "artifacts": self.fingerprints(), **content}
        )


def subjects(names: list[str]) -> list[tuple[Subject, ComponentParams]]:
    """Return the named components, or all that are built, with their parameters.

    Raises:
        Problem: nothing is built, or a named component is not.
    """
    names = names or require_built()
    params = load()
    return [(_built(name), params.component(name)) for name in names]


def from_published(folder: Path) -> tuple[Subject, dict[str, Any]]:
    """Return a published folder's subject, every byte checked against its manifest, and the manifest.

    Raises:
        Problem: a file is missing, extra or altered.
    """
    manifest = artifact.check(folder)
    try:
        description = component(manifest["component"])
        (stem, contract), *_ = description.contracts(artifact.read_json(folder / "config.json")).items()
        quantization = manifest["quantization"]
    except (KeyError, ValueError) as error:
        raise Problem(f"{folder}: its manifest is not that of a published component (no {error})") from None
    graphs = {FLOAT: folder / "onnx" / f"{stem}.onnx", QUANTIZED: folder / "onnx" / f"{stem}_int8.onnx"}
    recorded = folder / "golden" / golden.FILE
    folders = {"published": folder}
    subject = Subject(description.name, description, contract, graphs, recorded, folders, quantization)
    return subject, manifest


def require_current(subject: Subject, report: dict[str, Any], where: Path) -> None:
    """Refuse a report that was made from other artifacts than are here now.

    Raises:
        Problem: it was.
    """
    if report.get("artifacts") != subject.fingerprints():
        raise Problem(f"{where}: made from other artifacts than are here now; run dvc repro")


def _built(name: str) -> Subject:
    description = component(name)
    folders = {kind: Path("models") / kind / name for kind in ("onnx", "int8", "reference")}
    manifests = {kind: artifact.read_manifest(folder) for kind, folder in folders.items()}
    (stem, contract), *_ = description.contracts(artifact.read_json(folders["onnx"] / "config.json")).items()
    graphs = {FLOAT: folders["onnx"] / f"{stem}.onnx", QUANTIZED: folders["int8"] / f"{stem}_int8.onnx"}
    return Subject(
        name,
        description,
        contract,
        graphs,
        folders["reference"] / golden.FILE,
        folders,
        manifests["int8"]["quantization"],
    )
