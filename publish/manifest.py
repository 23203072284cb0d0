"""What a published folder's manifest says beside its files: enough to know what it is, and to doubt it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from omni.streamed import tensor_blocks
from publish.evidence import Evidence
from qwen_omni_onnx.common.contract import GraphContract

__all__ = ["KIND", "facts"]

KIND = "published"
_TOOLS = (
    "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "safetensors",
    "huggingface_hub", "dvc",
)  # fmt: skip
_REWRITTEN = ("reports", "dvc.lock")  # by every run: no change of the program


def facts(evidence: Evidence, contracts: Mapping[str, GraphContract], graphs: list[Path]) -> dict[str, Any]:
    """Return the manifest's facts.

    Args:
        evidence: what was gathered.
        contracts: interface of each graph, by file stem of the float32 one.
        graphs: the published graph files.
    """
    return {
        "kind": KIND,
        "name": evidence.name,
        "component": evidence.component.name,
        "synthetic_weights": evidence.synthetic,
        "source": evidence.source,
        "program": _program(),
        "parameters": evidence.params.model_dump(mode="json"),
        "tools": {tool: metadata.version(tool) for tool in _TOOLS},
        "gates": [asdict(verdict) for verdict in evidence.gate.verdicts],
        "machine": next(iter(evidence.latency.graphs.values())).machine,
        "quantization": evidence.quantization,
        "interface": {stem: _interface(contract) for stem, contract in contracts.items()},
        **({"variants": variants} if (variants := [asdict(cost) for cost in evidence.latency.variants]) else {}),
        "best_session_options": evidence.sessions,
        "tensors": {graph.name: _tensors(graph) for graph in graphs},
    }


def _interface(contract: GraphContract) -> dict[str, list[dict[str, Any]]]:
    return {
        way: [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in ports]
        for way, ports in (("inputs", contract.inputs), ("outputs", contract.outputs))
    }


def _tensors(graph: Path) -> dict[str, dict[str, Any]]:
    """Name, dtype, shape and SHA-256 of every tensor: the ONNX format's own checksum is checked by nobody."""
    found = {}
    for name, value in sorted(ir.load(graph).graph.initializers.items()):
        tensor = value.const_value
        digest = hashlib.sha256()
        for _, block in tensor_blocks(tensor):
            digest.update(block.tobytes())
        found[name] = {
            "dtype": tensor.dtype.name,
            "shape": list(tensor.shape.numpy()),
            "sha256": digest.hexdigest(),
        }
    return found


def _program() -> dict[str, Any]:
    """Commit of this repository, and whether the working tree differs from it; None where Git does not say.

    There may be no Git, no repository (an archive), or another user's, which Git refuses to look into. A repository
    around this folder is not this program's.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD") if git("rev-parse", "--show-prefix", "--is-inside-work-tree") == "true" else ""
    changed = git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in _REWRITTEN))
    return {"commit": commit or None, "modified": bool(changed) if commit else None}
