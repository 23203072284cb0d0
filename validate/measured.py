"""The components that are validated: those built under ``models/``, or published folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from components import component
from omni.component import Component, Config, artifact_path, require_built
from omni.inputs import feed
from omni.params import MeasuredParams, load
from omni.streamed import data_file
from qwen_omni_onnx.checked import check_published
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.identity import CHECKPOINT_NAME, MODEL
from qwen_omni_onnx.common.quantized import quantized_graph
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.published_manifest import require_types
from qwen_omni_onnx.runtimes import RUNTIMES

__all__ = [
    "MeasuredComponent",
    "MeasuredGraph",
    "built_components",
    "from_published",
    "graph_bytes",
]


@dataclass(frozen=True)
class MeasuredGraph:
    """One graph of a component.

    Attributes:
        stem: File stem of the float32 graph.
        contract: Interface of the graph, by the configuration that it was built from.
        files: Graph file by kind: ``FLOAT`` and, unless the graph stays float32, ``QUANTIZED``; this one alone if the
            folder was published without float32 graphs.
        quantization: Quantization of each MatMul and convolution by the node's name; empty if the graph stays float32.
        golden: File of golden cases with the graph's inputs; None where a run-time computes these from the cases.
    """

    stem: str
    contract: GraphContract
    files: dict[str, Path]
    quantization: dict[str, dict[str, Any]]
    golden: Path | None

    def open(self, kind: str, **options: Any) -> ort.InferenceSession:
        """Open a session of the graph of a kind, with options of :func:`open_session`."""
        return open_session(self.files[kind], **options)

    def feed(self, length: int) -> Mapping[str, np.ndarray]:
        """Return realistic inputs with one row of a length, cut from the largest golden case.

        If the golden cases do not hold the graph's inputs, the values are the contract's examples.
        """
        if self.golden is None:
            return self.contract.example(1, length)
        port = self.contract.inputs[0]
        largest = max((ports[port.name] for _, ports in golden.read(self.golden)), key=lambda array: array.size)
        return feed(self.contract, list(largest), [length])


@dataclass(frozen=True)
class MeasuredComponent:
    """One component with its graphs.

    Attributes:
        component: Description of the component.
        contract: Interface of the component: that of its run-time, or of its only graph.
        graphs: Graphs of the component, by file stem.
        golden: File of golden cases.
        folders: Folders of the artifacts, by kind.
    """

    component: Component
    contract: GraphContract
    graphs: dict[str, MeasuredGraph]
    golden: Path
    folders: dict[str, Path]

    @property
    def name(self) -> str:
        """Name of the component."""
        return self.component.name

    @property
    def ports(self) -> tuple[list[str], list[str]]:
        """Names of the component's inputs and outputs."""
        return [port.name for port in self.contract.inputs], [port.name for port in self.contract.outputs]

    @property
    def companions(self) -> Path:
        """The folder of the files that were exported beside the graphs."""
        return self.folders.get("published") or self.folders["onnx"]

    @property
    def kinds(self) -> list[str]:
        """``FLOAT`` if all such graphs are there, and ``QUANTIZED`` unless every graph stays float32."""
        held = [set(graph.files) for graph in self.graphs.values()]
        return [FLOAT] * all(FLOAT in kinds for kinds in held) + [QUANTIZED] * any(QUANTIZED in kinds for kinds in held)

    def files(self, kind: str) -> dict[str, Path]:
        """Return the file of each graph of a kind; a graph that stays float32 has its float32 file for both kinds."""
        return {stem: graph.files.get(kind) or graph.files[FLOAT] for stem, graph in self.graphs.items()}

    def fingerprints(self) -> dict[str, str]:
        """Return the artifacts' fingerprints by kind, which reports on this component record."""
        return {kind: artifact.fingerprint(folder) for kind, folder in self.folders.items()}


def built_components(names: list[str]) -> list[tuple[MeasuredComponent, MeasuredParams]]:
    """Return the named components, or all that are built, with their parameters.

    Raises:
        UserError: No component is built, a named one is not, or its parameters name a graph that it does not have.
    """
    names = names or require_built()
    params = load()
    components = [(_built(name), params.measured(name)) for name in names]
    for measured, block in components:
        block.require_graphs(measured.name, measured.graphs)
    return components


def from_published(folder: Path) -> tuple[MeasuredComponent, dict[str, Any]]:
    """Return the component of a published folder, every byte checked against its manifest, and the manifest.

    Raises:
        UserError: A file is missing, extra or altered; or the manifest, or the configuration, lacks what is read.
    """
    manifest = check_published(folder)
    require_types(folder, manifest)
    where = dict.fromkeys(("onnx", "quantized"), folder / "onnx")
    recorded = folder / "golden" / golden.FILE
    try:
        description = component(manifest["component"])
        config = {**read_config(folder), CHECKPOINT_NAME: str(manifest["source"][MODEL]["name"])}
        measured = _measured(description, config, where, recorded, {"published": folder}, manifest["quantization"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{folder}: its files are not those of a published component ({said})") from None
    for graph in measured.graphs.values():
        if QUANTIZED in graph.files and not graph.files[FLOAT].is_file():
            del graph.files[FLOAT]
    return measured, manifest


def graph_bytes(graph: Path) -> int:
    """Return the size on disk of a graph and its external data."""
    return graph.stat().st_size + data_file(graph).stat().st_size


def _built(name: str) -> MeasuredComponent:
    description = component(name)
    folders = {kind: artifact_path(kind, name) for kind in ("onnx", "quantized", "reference")}
    manifests = {kind: artifact.read_manifest(folder) for kind, folder in folders.items()}
    recorded, quantization = folders["reference"] / golden.FILE, manifests["quantized"]["quantization"]
    return _measured(description, read_config(folders["onnx"]), folders, recorded, folders, quantization)


def _measured(
    description: Component,
    config: Config,
    where: Mapping[str, Path],
    recorded: Path,
    folders: dict[str, Path],
    quantization: Mapping[str, dict[str, dict[str, Any]]],
) -> MeasuredComponent:
    """Return a measured component; ``where`` holds the folders of its float32 and quantized graphs."""
    graphs = {}
    for stem, contract in description.contracts(config).items():
        files = {FLOAT: where["onnx"] / f"{stem}.onnx"}
        if stem in quantization:
            files[QUANTIZED] = quantized_graph(where["quantized"], stem)
        own = None if description.name in RUNTIMES else recorded
        graphs[stem] = MeasuredGraph(stem, contract, files, quantization.get(stem, {}), own)
    return MeasuredComponent(description, description.interface(config), graphs, recorded, folders)
