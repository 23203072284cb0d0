"""Quantize a graph: every MatMul and Conv with constant weights by the scheme that the parameters give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
from safetensors.numpy import load_file

from omni.graph_builder import GraphBuilder
from omni.imported import Importer
from omni.params import QuantizeParams
from omni.patterns import first_match, require_matches
from omni.weight import Weight, convolutions, matmuls
from quantize.convolution import OPERATOR, SCHEME, ConvolutionRewriter, Span
from quantize.schemes import OPERATORS, SMOOTHED, Rewriter
from quantize.smoothing import fold
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Calibration", "quantize", "read_calibration"]


@dataclass(frozen=True)
class Calibration:
    """What calibration found of one activation.

    Attributes:
        factors: Smoothing factors [channels]; all of them 1 where only convolutions read or produce it.
        static_range: The r of the range [-r, r] of the smoothed values.
        span: Range [low, high] of the values, where a convolution reads or produces them.
    """

    factors: np.ndarray
    static_range: float
    span: Span | None = None


def read_calibration(folder: Path, onnx: Path, graph: str) -> dict[str, Calibration]:
    """Return the calibration of a graph, by activation; it is empty where no scheme needs one.

    Args:
        folder: Folder of the calibration.
        onnx: Folder of the artifact that is to be quantized with it.
        graph: File stem of the graph.

    Raises:
        UserError: The calibration is not whole, or was made from another graph.
    """
    if artifact.check(folder)["made_from"]["onnx"] != artifact.fingerprint(onnx):
        raise UserError(f"{folder}: made from another {onnx}; run python -m calibrate {onnx.name} again")
    path = folder / graph / "calibration.safetensors"
    arrays = load_file(path) if path.is_file() else {}
    return {key: _read(arrays, key) for key in {key.rpartition("/")[0] for key in arrays}}


def _read(arrays: Mapping[str, np.ndarray], key: str) -> Calibration:
    span = arrays.get(f"{key}/span")
    return Calibration(
        arrays[f"{key}/factors"],
        float(arrays[f"{key}/range"][0]),
        None if span is None else (float(span[0]), float(span[1])),
    )


def quantize(
    graph_file: Path,
    params: QuantizeParams,
    calibration: Mapping[str, Calibration],
    importer: Importer | None = None,
) -> tuple[ir.Model, dict[str, dict[str, Any]]]:
    """Return the quantized graph, its weights still to be computed when it is written, and a record of each node.

    The record says scheme, operator and smoothing, and, where several nodes took a node's place, how many: ``nodes``.

    Args:
        graph_file: File of the float32 graph, with external data.
        params: Scheme of all nodes, and of single ones. A Conv takes part where that of all nodes is int8-static; no
            other scheme has a form for it, and it stays float32.
        calibration: Calibration by activation, needed where a scheme smooths, and for each Conv.
        importer: Source of packed layers, needed for the scheme ``int4-import``.

    Raises:
        UserError: ``params.nodes`` names a node that is not there, or a Conv with a scheme that it cannot have;
            calibration lacks an activation; a matrix is to be imported that is not there to be.
    """
    model = ir.load(graph_file)
    graph = model.graph
    groups = matmuls(graph)
    weights = {node: Weight(node.inputs[1].const_value) for nodes in groups.values() for node in nodes}
    convolving = convolutions(graph)
    kind = "MatMul or Conv" if convolving else "MatMul"
    require_matches("quantize.nodes", params.nodes, [str(node.name) for node in (*weights, *convolving)], kind)
    scheme = {node: first_match(params.nodes, str(node.name)) or params.scheme for node in weights}
    rewriter = Rewriter(GraphBuilder(graph), params.block, importer=importer)
    smoothing: dict[ir.Node, str] = {}
    for activation, nodes in groups.items():
        smoothed = [node for node in nodes if scheme[node] in SMOOTHED]
        if smoothed:
            found = _calibrated(calibration, activation, weights[smoothed[0]].shape[0])
            place = _smooth(activation, nodes, smoothed, found, weights, rewriter)
            smoothing |= dict.fromkeys(smoothed, place)
    for node, weight in weights.items():
        rewriter.rewrite(node, scheme[node], weight)
    spans = {name: found.span for name, found in calibration.items() if found.span}
    convolved = [node for node in convolving if _quantizes(node, params)]
    convolver = ConvolutionRewriter(rewriter.builder, spans)
    for node in convolved:
        convolver.rewrite(node)
    if any(name != "float32" for name in scheme.values()):
        model.opset_imports["com.microsoft"] = 1
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    record: dict[str, dict[str, Any]] = {
        node.name: {"scheme": name, "operator": OPERATORS[name], "smoothing": smoothing.get(node, "none")}
        for node, name in scheme.items()
    }
    for name, count in rewriter.nodes.items():
        record[name]["nodes"] = count
    record |= {node.name: {"scheme": SCHEME, "operator": OPERATOR, "smoothing": "none"} for node in convolved}
    return model, record


def _quantizes(node: ir.Node, params: QuantizeParams) -> bool:
    """Whether a Conv is to be quantized.

    Raises:
        UserError: ``params.nodes`` gives it a scheme that it cannot have.
    """
    scheme = first_match(params.nodes, str(node.name))
    if scheme not in (None, SCHEME, "float32"):
        raise UserError(f"quantize.nodes: {scheme} has no form for the Conv {node.name}; give it {SCHEME} or float32")
    return (scheme or params.scheme) == SCHEME


def _smooth(
    activation: ir.Value,
    readers: list[ir.Node],
    chosen: list[ir.Node],
    calibration: Calibration,
    weights: dict[ir.Node, Weight],
    rewriter: Rewriter,
) -> str:
    """Smooth an activation for the ``chosen`` among its ``readers``; return where the factors went, for the record.

    Where they fold into what produces the activation, all its readers read it smoothed; that costs none of them.
    """
    producer = fold(activation, readers, calibration.factors, weights)
    smoothed = activation if producer else rewriter.smooth(activation, calibration.factors, chosen[0])
    rewriter.static_range[smoothed.name] = calibration.static_range
    for node in readers if producer else chosen:
        node.replace_input_with(0, smoothed)
        weights[node].scale_rows(calibration.factors)
    return f"folded into {producer}" if producer else "Mul"


def _calibrated(calibration: Mapping[str, Calibration], activation: ir.Value, channels: int) -> Calibration:
    found = calibration.get(str(activation.name))
    if found is None or len(found.factors) != channels:
        raise UserError(f"calibration knows nothing of {activation.name}; run python -m calibrate again")
    return found
