"""What is validated: a component as built under ``models/``, or a published folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omni.component import Component, Config, artifact_path, component, require_built
from omni.inputs import feed
from omni.params import MeasuredParams, load
from omni.streamed import data_file
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.agreement import BFLOAT16
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.identity import CHECKPOINT_NAME, MODEL
from qwen_omni_onnx.common.quantized import quantized_graph

__all__ = ["BFLOAT16", "FLOAT", "QUANTIZED", "Subject", "from_published", "graph_bytes", "require_current", "subjects"]

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
            Of a component that a run-time runs: none, they are those of its parts.
        golden: file of golden cases.
        folders: the artifacts that the above come from, by kind.
        quantization: what was done to each MatMul and convolution.
        parts: of a component that a run-time runs, each graph as a subject of its own, by file stem.
    """

    name: str
    component: Component
    contract: GraphContract
    graphs: dict[str, Path]
    golden: Path
    folders: dict[str, Path]
    quantization: dict[str, dict[str, Any]]
    parts: dict[str, Subject] = field(default_factory=dict)

    @property
    def each(self) -> dict[str, Subject]:
        """The subjects that have a graph, by file stem: its parts, or itself."""
        return self.parts or {self.graphs[FLOAT].stem: self}

    @property
    def companions(self) -> Path:
        """The folder that holds what was exported beside the graphs."""
        return self.folders.get("published") or self.folders["onnx"]

    @property
    def kinds(self) -> list[str]:
        """``FLOAT``, and ``QUANTIZED`` unless everything stays float32."""
        return [kind for kind in (FLOAT, QUANTIZED) if any(kind in part.graphs for part in self.each.values())]

    def of_kind(self, kind: str) -> dict[str, Path]:
        """Return a graph file for each part: of the quantized kind, the float32 one where there is no other."""
        return {stem: part.graphs.get(kind, part.graphs[FLOAT]) for stem, part in self.each.items()}

    def fingerprints(self) -> dict[str, str]:
        """What a report about this subject is bound to."""
        return {kind: artifact.fingerprint(folder) for kind, folder in self.folders.items()}

    def feed(self, length: int) -> Mapping[str, np.ndarray]:
        """Return inputs of one row of a length, cut from the largest golden case: what the component sees at work.

        Of one of several graphs, the golden cases hold no inputs: made-up values.
        """
        if self.component.runtime:
            return self.contract.example(1, length)
        port = self.contract.inputs[0]
        largest = max((ports[port.name] for _, ports in golden.read(self.golden)), key=lambda array: array.size)
        return feed(self.contract, list(largest), [length])

    def report(self, measurement: str) -> Path:
        return REPORTS / self.name / f"{measurement}.json"

    def write_report(self, measurement: str, content: dict[str, Any]) -> None:
        artifact.write_json(
            self.report(measurement), {"component": self.name, "artifacts": self.fingerprints(), **content}
        )


def subjects(names: list[str]) -> list[tuple[Subject, MeasuredParams]]:
    """Return the named components, or all that are built, with their parameters.

    Raises:
        UserError: nothing is built, or a named component is not.
    """
    names = names or require_built()
    params = load()
    return [(_built(name), params.measured(name)) for name in names]


def from_published(folder: Path) -> tuple[Subject, dict[str, Any]]:
    """Return a published folder's subject, every byte checked against its manifest, and the manifest.

    Raises:
        UserError: a file is missing, extra or altered.
    """
    manifest = artifact.check(folder)
    try:
        description = component(manifest["component"])
        config = {**read_config(folder), CHECKPOINT_NAME: str(manifest["source"][MODEL]["name"])}
        quantization = manifest["quantization"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: its manifest is not that of a published component (no {error})") from None
    where = dict.fromkeys(("onnx", "int8"), folder / "onnx")
    made = _assemble(description, config, where, folder / "golden" / golden.FILE, {"published": folder}, quantization)
    return made, manifest


def graph_bytes(graph: Path) -> int:
    """Return what a graph takes on disk, its external data included."""
    return graph.stat().st_size + data_file(graph).stat().st_size


def require_current(subject: Subject, report: dict[str, Any], where: Path) -> None:
    """Refuse a report that was made from other artifacts than are here now.

    Raises:
        UserError: it was.
    """
    if report.get("artifacts") != subject.fingerprints():
        raise UserError(f"{where}: made from other artifacts than are here now; run dvc repro")


def _built(name: str) -> Subject:
    description = component(name)
    folders = {kind: artifact_path(kind, name) for kind in ("onnx", "int8", "reference")}
    manifests = {kind: artifact.read_manifest(folder) for kind, folder in folders.items()}
    recorded, quantization = folders["reference"] / golden.FILE, manifests["int8"]["quantization"]
    return _assemble(description, read_config(folders["onnx"]), folders, recorded, folders, quantization)


def _assemble(
    description: Component,
    config: Config,
    where: Mapping[str, Path],
    recorded: Path,
    folders: dict[str, Path],
    quantization: Mapping[str, dict[str, dict[str, Any]]],
) -> Subject:
    """Make a component's subject; ``where`` are the folders of its float32 and quantized graphs."""
    each = {}
    for stem, contract in description.contracts(config).items():
        graphs = {FLOAT: where["onnx"] / f"{stem}.onnx"}
        if stem in quantization:
            graphs[QUANTIZED] = quantized_graph(where["int8"], stem)
        nodes = quantization.get(stem, {})
        each[stem] = Subject(description.name, description, contract, graphs, recorded, folders, nodes)
    if not description.runtime:
        return next(iter(each.values()))
    return Subject(description.name, description, description.interface(config), {}, recorded, folders, {}, each)
