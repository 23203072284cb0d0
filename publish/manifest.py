"""The manifest of a published folder: its schema, and its facts beside the list of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, NotRequired

import onnx_ir as ir
from typing_extensions import TypedDict  # pydantic's JSON Schema needs this one on Python 3.11

from omni.program import Program, program
from omni.reports import VariantCost
from omni.streamed import initializers, tensor_blocks
from publish.evidence import Evidence
from qwen_omni_onnx.common.agreement import Verdict
from qwen_omni_onnx.common.contract import GraphContract, Port

__all__ = ["KIND", "Facts", "Manifest", "facts"]

KIND: Final = "published"
_TOOLS = (
    "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "safetensors",
    "huggingface_hub", "dvc",
)  # fmt: skip


class FileEntry(TypedDict):
    """Size and hash of a file."""

    bytes: int
    sha256: str


class PortEntry(TypedDict):
    """An input or an output of a graph; an axis of ``shape`` is a size or a symbolic name."""

    name: str
    dtype: str
    shape: list[int | str]


class Interface(TypedDict):
    """Inputs and outputs of a graph, in order."""

    inputs: list[PortEntry]
    outputs: list[PortEntry]


class TensorEntry(TypedDict):
    """Dtype, shape and hash of a tensor's bytes."""

    dtype: str
    shape: list[int]
    sha256: str


class Facts(TypedDict):
    """Facts in the manifest of a published folder beside the list of files: see ``docs/format.md``."""

    kind: Literal["published"]
    name: str
    component: str
    synthetic_weights: bool
    source: dict[str, Any]
    program: Program
    parameters: dict[str, Any]
    tools: dict[str, str]
    gates: list[Verdict]
    machine: dict[str, str | int]
    quantization: dict[str, dict[str, dict[str, Any]]]
    interface: dict[str, Interface]
    variants: NotRequired[list[VariantCost]]
    best_session_options: dict[str, dict[str, dict[str, Any]]]
    tensors: dict[str, dict[str, TensorEntry]]


class Manifest(Facts):
    """``manifest.json`` of a published folder."""

    files: dict[str, FileEntry]


def facts(evidence: Evidence, contracts: Mapping[str, GraphContract], graphs: list[Path]) -> Facts:
    """Return the manifest's facts.

    Args:
        evidence: Artifacts and reports of the component.
        contracts: Interface of each graph, by file stem of the float32 one.
        graphs: The published graph files.
    """
    content: Facts = {
        "kind": KIND,
        "name": evidence.name,
        "component": evidence.component.name,
        "synthetic_weights": evidence.synthetic,
        "source": evidence.source,
        "program": program(),
        "parameters": evidence.params.model_dump(mode="json"),
        "tools": {tool: metadata.version(tool) for tool in _TOOLS},
        "gates": evidence.gate.verdicts,
        "machine": next(iter(evidence.latency.graphs.values())).machine,
        "quantization": evidence.quantization,
        "interface": {stem: _interface(contract) for stem, contract in contracts.items()},
        "best_session_options": evidence.sessions,
        "tensors": {graph.name: _tensors(graph) for graph in graphs},
    }
    if evidence.latency.variants:
        content["variants"] = evidence.latency.variants
    return content


def _interface(contract: GraphContract) -> Interface:
    return {"inputs": _ports(contract.inputs), "outputs": _ports(contract.outputs)}


def _ports(ports: Sequence[Port]) -> list[PortEntry]:
    return [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in ports]


def _tensors(graph: Path) -> dict[str, TensorEntry]:
    """Return dtype, shape and SHA-256 of every tensor by name: no run-time verifies the ONNX format's checksum."""
    entries: dict[str, TensorEntry] = {}
    for value in sorted(initializers(ir.load(graph)), key=lambda value: str(value.name)):
        tensor = value.const_value
        digest = hashlib.sha256()
        for _, block in tensor_blocks(tensor):
            digest.update(block.tobytes())
        entries[str(value.name)] = {
            "dtype": tensor.dtype.name,
            "shape": list(tensor.shape.numpy()),
            "sha256": digest.hexdigest(),
        }
    return entries
