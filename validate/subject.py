"""What is validated: a component as built under ``models/``, or a published folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omni import artifact, golden
from omni.checkpoint import read_config
from omni.component import Component, component, require_built
from omni.contract import GraphContract
from omni.errors import Problem
from omni.inputs import feed
from omni.params import ComponentParams, load

__all__ = ["FLOAT", "QUANTIZED", "Subject", "from_published", "require_current", "subjects"]

FLOAT, QUANTIZED = "float32", "quantized"
REPORTS = Path("reports")


@dataclass(frozen=True)
class Subject:
    """One component with its graphs.

    Attributes:
        name: of the component.
        component: its description.
        contract: interface of its graph, by the configuration it was built from.
        graphs: graph files by ``FLOAT`` and, unless it stays float32, ``QUANTIZED``.
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

    def feed(self, length: int) -> Mapping[str, np.ndarray]:
        """Return inputs of one row of a length, cut from the largest golden case: what the component sees at work."""
        port = self.contract.inputs[0]
        largest = max((ports[port.name] for _, ports in golden.read(self.golden)), key=lambda array: array.size)
        return feed(self.contract, list(largest), [length])

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
        stem, contract = description.graph(read_config(folder))
        quantization = manifest["quantization"]
    except (KeyError, ValueError) as error:
        raise Problem(f"{folder}: its manifest is not that of a published component (no {error})") from None
    graphs = _graphs(folder / "onnx", folder / "onnx", stem, bool(quantization))
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
    stem, contract = description.graph(read_config(folders["onnx"]))
    graphs = _graphs(folders["onnx"], folders["int8"], stem, bool(manifests["int8"]["graphs"]))
    return Subject(
        name,
        description,
        contract,
        graphs,
        folders["reference"] / golden.FILE,
        folders,
        manifests["int8"]["quantization"],
    )


def _graphs(onnx: Path, int8: Path, stem: str, quantized: bool) -> dict[str, Path]:
    graphs = {FLOAT: onnx / f"{stem}.onnx"}
    return {**graphs, QUANTIZED: int8 / f"{stem}_int8.onnx"} if quantized else graphs
