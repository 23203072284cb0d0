"""Composes the audio core, one graph from audio to waveform, from frontend, encoder, projection and token2wav.

Their weights, float32 or quantized, are copied unchanged, so that composing needs neither PyTorch nor memory for all
weights of a component.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components import component
from components.audio_core import COMPONENT, COMPONENTS, GRAPH
from compose.golden import fingerprints, require_current, separate_outputs
from compose.graph import PREFIXES, compose, stems
from omni.component import artifact_path
from omni.params import ComposedParams
from omni.stored import load_graph
from omni.streamed import save_graph
from qwen_omni_onnx.audio_core.runtime import SETTINGS, settings_of
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_graph, quantized_stem
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.token2wav.runtime import SETTINGS as SAMPLER

__all__ = ["compose_float32", "compose_quantized", "separate_outputs"]

_OWN = ("tensors", "renamed", "speakers_sha256")  # keys of source.json that differ between components
_OPERATOR = "MatMul"


def compose_float32(params: ComposedParams, out: Path) -> None:
    """Compose the float32 graphs.

    Args:
        params: Parameters of the component, with the sampler variant.
        out: Folder of the artifact.

    Raises:
        UserError: A component is not built, or is from another checkpoint than the others; ``out`` cannot be
            replaced.
    """
    artifact.require_replaceable(out, "onnx", COMPONENT.name)
    folders = {name: _checked("onnx", name) for name in COMPONENTS}
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
            key: folders[name] / f"{stem}.onnx"
            for name in COMPONENTS
            for key, stem in stems(name, folders[name]).items()
        }
        save_graph(compose(graphs, sampler, params.variant, contract), folder, GRAPH)


def compose_quantized(float32: Path, out: Path) -> None:
    """Compose the quantized graphs, with the float32 graph of a component that stays float32.

    Args:
        float32: Artifact of the composed float32 graph.
        out: Folder of the artifact.

    Raises:
        UserError: A component is not built, or was quantized from another graph than the composed float32 graph
            contains; ``out`` cannot be replaced.
    """
    artifact.require_replaceable(out, "quantized", COMPONENT.name)
    floating = {name: _checked("onnx", name) for name in COMPONENTS}
    quantized = {name: _checked("quantized", name) for name in COMPONENTS}
    artifact.check(float32)
    require_current(float32, "source", "onnx")
    quantization: dict[str, dict[str, str]] = {}
    graphs: dict[str, Path] = {}
    for name in COMPONENTS:
        manifest = artifact.read_manifest(quantized[name])
        if manifest["made_from"]["onnx"] != artifact.fingerprint(floating[name]):
            raise UserError(f"{quantized[name]}: made from another {floating[name]}; run python -m quantize {name}")
        for key, stem in stems(name, floating[name]).items():
            nodes = manifest["quantization"].get(stem)
            graphs[key] = quantized_graph(quantized[name], stem) if nodes else floating[name] / f"{stem}.onnx"
            nodes = nodes or _float32_nodes(graphs[key])
            quantization |= {f"{PREFIXES[key]}/{node}": entry for node, entry in nodes.items()}
    made_from = {"onnx": artifact.fingerprint(float32), "components": fingerprints("quantized")}
    stem = quantized_stem(GRAPH, "int8")
    facts = {"kind": "quantized", "component": COMPONENT.name, "made_from": made_from, "graphs": [stem]}
    with artifact.writing(out, **facts, quantization={GRAPH: quantization}) as folder:
        sampler = artifact.read_json(floating["token2wav"] / SAMPLER)
        variant = artifact.read_json(float32 / SETTINGS)["variant"]
        contract = COMPONENT.contracts(read_config(float32))[GRAPH]
        save_graph(compose(graphs, sampler, variant, contract), folder, stem)


def _checked(kind: str, name: str) -> Path:
    folder = artifact_path(kind, name)
    artifact.check(folder)
    return folder


def _float32_nodes(graph: Path) -> dict[str, dict[str, str]]:
    """Return entries for the MatMuls of a graph that stays float32, in the form that ``quantize`` records."""
    nodes = (node for node in load_graph(graph).graph if node.op_type == _OPERATOR)
    constant = (node for node in nodes if any(value.const_value is not None for value in node.inputs))
    return {str(node.name): {"scheme": "float32", "operator": _OPERATOR, "smoothing": "none"} for node in constant}


def _source(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return the content of ``source.json``, with the tensors of all components.

    Raises:
        UserError: The weights of one component come from another checkpoint.
    """
    sources = {name: artifact.read_json(folder / "source.json") for name, folder in folders.items()}
    origins = {name: {k: v for k, v in source.items() if k not in _OWN} for name, source in sources.items()}
    first, *others = COMPONENTS
    for name in others:
        if origins[name] != origins[first]:
            raise UserError(f"{folders[name]}: from another checkpoint than {folders[first]}; build both from one")
    merged: dict[str, Any] = {"tensors": {}}
    for source in sources.values():
        merged |= {**source, "tensors": merged["tensors"] | source["tensors"]}
    return merged


def _config(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return the checkpoint's configuration, with each component's own number of layers: synthetic ones may differ."""
    *others, last = COMPONENTS
    config = copy.deepcopy(artifact.read_json(folders[last] / "config.json"))
    for name in others:
        source, target, path = artifact.read_json(folders[name] / "config.json"), config, component(name).depth
        for key in path[:-1]:
            source, target = source[key], target[key]
        if path:
            target[path[-1]] = source[path[-1]]
    return config
