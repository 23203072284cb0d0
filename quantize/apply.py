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

from omni.imported import Importer
from omni.params import QuantizeParams
from omni.patterns import pick, require_matches
from omni.weight import Weight, convolutions, matmuls
from quantize.convolution import OPERATOR, SCHEME, ConvolutionRewriter, Span
from quantize.editor import Editor
from quantize.schemes import OPERATORS, SMOOTHED, Rewriter
from quantize.smoothing import fold
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Calibration", "quantize", "read_calibration"]


@dataclass(frozen=True)
class Calibration:
    """What calibration found of one activation.

    Attributes:
        factors: smoothing factors [channels]; where only convolutions read or make it, all of them 1.
        static_range: of the smoothed values, [-r, r].
        span: range [low, high] of the values that a convolution reads or makes.
    """

    factors: np.ndarray
    static_range: float
    span: Span | None = None


def read_calibration(folder: Path, onnx: Path, graph: str) -> dict[str, Calibration]:
    """Read what ``calibrate`` wrote of a graph, by activation: nothing, where it was not to calibrate.

    Args:
        folder: the calibration.
        onnx: the artifact that is to be quantized with it.
        graph: file stem.

    Raises:
        UserError: the calibration is not whole, or was made from another graph.
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
    """Return the quantized graph, its weights still to be computed when it is written, and what was done to each node.

    Of a node that several took the place of, the record says how many: ``nodes``.

    Args:
        graph_file: the float32 graph, with external data.
        params: scheme for all and for single nodes. That for all is a Conv's too where it is int8-static; no other
            scheme has a form for it, and without one it stays float32.
        calibration: by activation; needed where a scheme smooths, and for each Conv.
        importer: needed for the scheme ``int4-import``.

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
    scheme = {node: pick(params.nodes, str(node.name)) or params.scheme for node in weights}
    rewriter = Rewriter(Editor(graph), params.block, importer=importer)
    smoothing: dict[ir.Node, str] = {}
    for activation, nodes in groups.items():
        wanting = [node for node in nodes if scheme[node] in SMOOTHED]
        if wanting:
            seen = _calibrated(calibration, activation, weights[wanting[0]].shape[0])
            how = _smooth(activation, nodes, wanting, seen, weights, rewriter)
            smoothing |= dict.fromkeys(wanting, how)
    for node, weight in weights.items():
        rewriter.rewrite(node, scheme[node], weight)
    spans = {name: seen.span for name, seen in calibration.items() if seen.span}
    convolved = [node for node in convolving if _quantizes(node, params)]
    convolver = ConvolutionRewriter(rewriter.edit, spans)
    for node in convolved:
        convolver.rewrite(node)
    if any(name != "float32" for name in scheme.values()):
        model.opset_imports["com.microsoft"] = 1
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    done: dict[str, dict[str, Any]] = {
        node.name: {"scheme": name, "operator": OPERATORS[name], "smoothing": smoothing.get(node, "none")}
        for node, name in scheme.items()
    }
    for name, count in rewriter.nodes.items():
        done[name]["nodes"] = count
    done |= {node.name: {"scheme": SCHEME, "operator": OPERATOR, "smoothing": "none"} for node in convolved}
    return model, done


def _quantizes(node: ir.Node, params: QuantizeParams) -> bool:
    """Whether a Conv is to be quantized.

    Raises:
        UserError: ``params.nodes`` gives it a scheme that it cannot have.
    """
    wanted = pick(params.nodes, str(node.name))
    if wanted not in (None, SCHEME, "float32"):
        raise UserError(f"quantize.nodes: {wanted} has no form for the Conv {node.name}; give it {SCHEME} or float32")
    return (wanted or params.scheme) == SCHEME


def _smooth(
    activation: ir.Value,
    readers: list[ir.Node],
    wanting: list[ir.Node],
    seen: Calibration,
    weights: dict[ir.Node, Weight],
    rewriter: Rewriter,
) -> str:
    """Let the ``wanting`` among an activation's ``readers`` read it smoothed; say how that came about.

    Where the factors fold into what makes the activation, all its readers read it smoothed; that costs none of them.
    """
    taker = fold(activation, readers, seen.factors, weights)
    smoothed = activation if taker else rewriter.smooth(activation, seen.factors, wanting[0])
    rewriter.static_range[smoothed.name] = seen.static_range
    for node in readers if taker else wanting:
        node.replace_input_with(0, smoothed)
        weights[node].scale_rows(seen.factors)
    return f"folded into {taker}" if taker else "Mul"


def _calibrated(calibration: Mapping[str, Calibration], activation: ir.Value, channels: int) -> Calibration:
    seen = calibration.get(str(activation.name))
    if seen is None or len(seen.factors) != channels:
        raise UserError(f"calibration knows nothing of {activation.name}; run python -m calibrate again")
    return seen
