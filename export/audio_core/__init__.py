"""Sound to sound in one graph, put together from the graphs of its parts.

Nothing is computed here: a part's weights are copied, float32 or quantized, as they are. So both commands that make it,
``python -m export`` and ``python -m quantize``, need neither PyTorch nor the memory for a whole part.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from components.audio_core import COMPONENT, GRAPH, PARTS
from export.audio_core.graph import PART_OF, compose, stems
from export.audio_core.reference import fingerprints, record, require_parts
from omni.component import artifact_path, component
from omni.params import ComposedParams
from omni.streamed import save_graph
from qwen_omni_onnx.audio_core.runtime import SETTINGS, settings_of
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_graph, quantized_stem
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.token2wav.runtime import SETTINGS as SAMPLER

__all__ = ["export", "quantize", "record"]

_OWN = ("tensors", "renamed", "speakers_sha256")  # of source.json: what differs from part to part
_OPERATOR = "MatMul"


def export(params: ComposedParams, out: Path | None = None) -> None:
    """Compose the float32 graphs of the parts.

    Raises:
        UserError: a part is not built, or from another checkpoint than the others; something is in the way.
    """
    out = out or artifact_path("onnx", COMPONENT.name)
    artifact.require_replaceable(out, "onnx", COMPONENT.name)
    folders = {part: _checked("onnx", part) for part in PARTS}
    source, config = _source(folders), _config(folders)
    facts = {"kind": "onnx", "component": COMPONENT.name, "made_from": {"source": fingerprints("onnx")}}
    with artifact.writing(out, **facts, graphs=[GRAPH]) as folder:
        artifact.write_json(folder / "config.json", config)
        for name in COMPONENT.companions:
            (folder / name).write_bytes((folders["frontend"] / name).read_bytes())
        for name in (VOICES, *(["LICENSE"] if (folders["token2wav"] / "LICENSE").is_file() else [])):
            (folder / name).write_bytes((folders["token2wav"] / name).read_bytes())
        artifact.write_json(folder / "source.json", source)
        sampler = artifact.read_json(folders["token2wav"] / SAMPLER)
        artifact.write_json(folder / SETTINGS, settings_of(sampler, params.variant))
        contract = COMPONENT.contracts(read_config(folder))[GRAPH]
        graphs = {
            key: folders[part] / f"{stem}.onnx" for part in PARTS for key, stem in stems(part, folders[part]).items()
        }
        save_graph(compose(graphs, sampler, params.variant, contract), folder, GRAPH)


def quantize(out: Path | None = None) -> None:
    """Compose the quantized graphs of the parts, and the float32 ones of those that stay float32.

    Raises:
        UserError: a part is not built, or was quantized from another graph than the float32 whole has in it; something
            is in the way.
    """
    out = out or artifact_path("int8", COMPONENT.name)
    artifact.require_replaceable(out, "int8", COMPONENT.name)
    whole = _checked("onnx", COMPONENT.name)
    floating = {part: _checked("onnx", part) for part in PARTS}
    quantized = {part: _checked("int8", part) for part in PARTS}
    require_parts(whole, "source", "onnx")
    done: dict[str, dict[str, str]] = {}
    graphs: dict[str, Path] = {}
    for part in PARTS:
        manifest = artifact.read_manifest(quantized[part])
        if manifest["made_from"]["onnx"] != artifact.fingerprint(floating[part]):
            raise UserError(f"{quantized[part]}: made from another {floating[part]}; run python -m quantize {part}")
        for key, stem in stems(part, floating[part]).items():
            nodes = manifest["quantization"].get(stem)
            graphs[key] = quantized_graph(quantized[part], stem) if nodes else floating[part] / f"{stem}.onnx"
            nodes = nodes or _float32_nodes(graphs[key])
            done |= {f"{PART_OF[key]}/{node}": entry for node, entry in nodes.items()}
    made_from = {"onnx": artifact.fingerprint(whole), "parts": fingerprints("int8")}
    stem = quantized_stem(GRAPH, "int8")
    facts = {"kind": "int8", "component": COMPONENT.name, "made_from": made_from, "graphs": [stem]}
    with artifact.writing(out, **facts, quantization={GRAPH: done}) as folder:
        sampler = artifact.read_json(floating["token2wav"] / SAMPLER)
        variant = artifact.read_json(whole / SETTINGS)["variant"]
        contract = COMPONENT.contracts(read_config(whole))[GRAPH]
        save_graph(compose(graphs, sampler, variant, contract), folder, stem)


def _checked(kind: str, name: str) -> Path:
    folder = artifact_path(kind, name)
    artifact.check(folder)
    return folder


def _float32_nodes(graph: Path) -> dict[str, dict[str, str]]:
    """Describe the matrix multiplications of a graph that stays float32, as ``quantize`` describes such nodes."""
    nodes = (node for node in ir.load(graph).graph if node.op_type == _OPERATOR)
    constant = (node for node in nodes if any(value.const_value is not None for value in node.inputs))
    return {str(node.name): {"scheme": "float32", "operator": _OPERATOR, "smoothing": "none"} for node in constant}


def _source(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return where the weights come from, all parts' tensors together.

    Raises:
        UserError: one part's come from another checkpoint.
    """
    said = {part: artifact.read_json(folder / "source.json") for part, folder in folders.items()}
    origins = {part: {k: v for k, v in source.items() if k not in _OWN} for part, source in said.items()}
    first, *others = PARTS
    for part in others:
        if origins[part] != origins[first]:
            raise UserError(f"{folders[part]}: from another checkpoint than {folders[first]}; build both from one")
    whole: dict[str, Any] = {"tensors": {}}
    for source in said.values():
        whole |= {**source, "tensors": whole["tensors"] | source["tensors"]}
    return whole


def _config(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return the checkpoint's configuration; of synthetic weights, each part's says how many layers that part has."""
    *others, last = PARTS
    config = copy.deepcopy(artifact.read_json(folders[last] / "config.json"))
    for part in others:
        theirs, ours, path = artifact.read_json(folders[part] / "config.json"), config, component(part).depth
        for key in path[:-1]:
            theirs, ours = theirs[key], ours[key]
        if path:
            ours[path[-1]] = theirs[path[-1]]
    return config
