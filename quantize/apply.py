"""Quantize a graph: every MatMul and Conv with constant weights by the scheme that the parameters give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
from safetensors.numpy import load_file

from omni.change import Change
from omni.graph_builder import GraphBuilder
from omni.imported import Importer
from omni.params import QuantizeParams
from omni.patterns import first_match, require_matches
from omni.stored import load_graph
from omni.weight import Weight, convolutions, matmuls
from quantize.codes import Codes
from quantize.convolution import OPERATOR, SCHEME, ConvolutionRewriter, Span
from quantize.parts import Parts, split
from quantize.schemes import CHANGED, NEED_CALIBRATION, OPERATORS, Rewriter
from quantize.smooth import Smoother
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Calibration", "Matrix", "Quantized", "quantize", "read_calibration", "rewrite"]


@dataclass(frozen=True)
class Calibration:
    """What calibration found of one activation.

    Attributes:
        factors: Smoothing factors [channels]; all of them 1 where only convolutions read or produce it.
        static_range: The r of the range [-r, r] of the changed values; None if it was not measured.
        span: Range [low, high] of the values, where a convolution reads or produces them.
        shift: What is subtracted from each channel, [channels]; None if nothing is.
        run: Number of channels that a Hadamard rotation mixes; 0 if there is none.
        rms: Root mean square of each channel, before all changes, [channels]; None where no MatMul reads it.
    """

    factors: np.ndarray
    static_range: float | None
    span: Span | None = None
    shift: np.ndarray | None = None
    run: int = 0
    rms: np.ndarray | None = None

    @property
    def change(self) -> Change:
        """The exact change of the activation."""
        return Change(self.factors, self.shift, self.run)

    @property
    def importance(self) -> np.ndarray | None:
        """Mean square of each changed channel, [channels]."""
        if self.rms is None:
            return None
        mean = 0 if self.shift is None else np.square(self.shift, dtype=np.float64)  # the shift is the mean
        squares = np.maximum(np.square(self.rms, dtype=np.float64) - mean, 0) / np.square(self.factors)
        return np.repeat(squares.reshape(-1, self.run).mean(1), self.run) if self.run else squares


@dataclass(frozen=True)
class Matrix:
    """A matrix that is quantized, and what it multiplies.

    Attributes:
        weight: The matrix, with the change of its activation in its rows.
        scheme: Its scheme.
        activation: Name of the value that the scheme quantizes, in the quantized graph.
        damping: Damping of the compensation of its rounding errors; None if they are not compensated.
    """

    weight: Weight
    scheme: str
    activation: str
    damping: float | None


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, its weights still to be computed when it is written.

    Attributes:
        model: The graph.
        record: Record of each node: scheme, operator, smoothing, and, where several nodes took its place, how many.
        matrices: Quantized matrices by node, in the graph's order.
    """

    model: ir.Model
    record: dict[str, dict[str, Any]]
    matrices: dict[str, Matrix] = field(default_factory=dict)


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
    span, static_range = arrays.get(f"{key}/span"), arrays.get(f"{key}/range")
    return Calibration(
        arrays[f"{key}/factors"],
        None if static_range is None else float(static_range[0]),
        None if span is None else (float(span[0]), float(span[1])),
        arrays.get(f"{key}/shift"),
        int(arrays.get(f"{key}/run", [0])[0]),
        arrays.get(f"{key}/rms"),
    )


def quantize(
    graph_file: Path,
    params: QuantizeParams,
    calibration: Mapping[str, Calibration],
    importer: Importer | None = None,
    codes: Codes | None = None,
) -> tuple[ir.Model, dict[str, dict[str, Any]]]:
    """Return the quantized graph and the record of each node: see :func:`rewrite`."""
    quantized = rewrite(graph_file, params, calibration, importer, codes)
    return quantized.model, quantized.record


def rewrite(
    graph_file: Path,
    params: QuantizeParams,
    calibration: Mapping[str, Calibration],
    importer: Importer | None = None,
    codes: Codes | None = None,
) -> Quantized:
    """Quantize a graph.

    Args:
        graph_file: File of the float32 graph, with external data.
        params: Scheme of all nodes, and of single ones. A Conv takes part where that of all nodes is int8-static; no
            other scheme has a form for it, and it stays float32.
        calibration: Calibration by activation, needed for INT8 schemes with a scale for each output, and for each Conv.
            Where there is one, activations of the block schemes are changed, too.
        importer: Source of packed layers, needed for the scheme ``int4-import``.
        codes: Codes of compensated nodes, read when the graph is written; without them all codes are the nearest ones.

    Raises:
        UserError: ``params`` names a node that is not there, or a Conv with a scheme that it cannot have; calibration
            lacks an activation; a matrix is to be imported that is not there to be.
    """
    model = load_graph(graph_file)
    graph = model.graph
    groups = matmuls(graph)
    weights = {node: Weight(node.inputs[1].const_value) for nodes in groups.values() for node in nodes}
    parts = Parts(params, weights)
    convolving = convolutions(graph)
    kind = "MatMul or Conv" if convolving else "MatMul"
    names = [*parts.names, *(str(node.name) for node in convolving)]
    require_matches("quantize.nodes", params.nodes, names, kind)
    require_matches("quantize.compensation", params.compensation, parts.names)
    rewriter = Rewriter(GraphBuilder(graph), params.block, importer=importer, codes=codes)
    smoothing = _change_activations(groups, weights, parts, calibration, rewriter)
    pieces = [(node, piece) for node in list(weights) for piece in split(node, parts, weights, rewriter.builder)]
    matrices: dict[str, Matrix] = {}
    record: dict[str, dict[str, Any]] = {}
    for node, piece in pieces:
        name = str(piece.node.name)
        record[name] = {"scheme": piece.scheme, "operator": OPERATORS[piece.scheme], "smoothing": "none"}
        record[name] |= smoothing.get(node, {})
        if piece.scheme in CHANGED:
            damping = None if codes is None else piece.damping
            matrices[name] = Matrix(piece.weight, piece.scheme, str(piece.node.inputs[0].name), damping)
            if damping is not None:
                rewriter.compensated.add(name)
                record[name]["compensation"] = damping
        rewriter.rewrite(piece.node, piece.scheme, piece.weight)
    for name, count in rewriter.nodes.items():
        record[name]["nodes"] = count
    if any(entry["scheme"] != "float32" for entry in record.values()):
        model.opset_imports["com.microsoft"] = 1
    for node in _convolve(convolving, params, calibration, rewriter.builder):
        record[str(node.name)] = {"scheme": SCHEME, "operator": OPERATOR, "smoothing": "none"}
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    return Quantized(model, record, matrices)


def _change_activations(
    groups: Mapping[ir.Value, list[ir.Node]],
    weights: dict[ir.Node, Weight],
    parts: Parts,
    calibration: Mapping[str, Calibration],
    rewriter: Rewriter,
) -> dict[ir.Node, Mapping[str, Any]]:
    """Change every activation as calibration says; return what the record says of it, by the nodes that are quantized.

    Raises:
        UserError: Calibration lacks an activation.
    """
    smoother = Smoother(rewriter, weights)
    records: dict[ir.Node, Mapping[str, Any]] = {}
    for activation, nodes in groups.items():
        changed = [node for node in nodes if parts.schemes(node) <= CHANGED]
        found = _calibrated(calibration, activation, weights[nodes[0]].shape[0])
        if found is None and any(parts.schemes(node) & NEED_CALIBRATION for node in changed):
            raise UserError(f"calibration knows nothing of {activation.name}; run python -m calibrate again")
        if changed and found is not None:
            done = smoother.apply(activation, nodes, changed, found.change)
            if found.static_range is not None:
                rewriter.static_range[done.activation] = found.static_range
            if (importance := found.importance) is not None:
                rewriter.importance[done.activation] = importance
            records |= dict.fromkeys(changed, done.record)
    return records


def _convolve(
    nodes: list[ir.Node], params: QuantizeParams, calibration: Mapping[str, Calibration], builder: GraphBuilder
) -> list[ir.Node]:
    """Quantize the Convs that have the scheme for it; return them."""
    chosen = [node for node in nodes if _quantizes(node, params)]
    convolver = ConvolutionRewriter(builder, {name: found.span for name, found in calibration.items() if found.span})
    for node in chosen:
        convolver.rewrite(node)
    return chosen


def _quantizes(node: ir.Node, params: QuantizeParams) -> bool:
    """Whether a Conv is to be quantized.

    Raises:
        UserError: ``params.nodes`` gives it a scheme that it cannot have.
    """
    scheme = first_match(params.nodes, str(node.name))
    if scheme not in (None, SCHEME, "float32"):
        raise UserError(f"quantize.nodes: {scheme} has no form for the Conv {node.name}; give it {SCHEME} or float32")
    return (scheme or params.scheme) == SCHEME


def _calibrated(calibration: Mapping[str, Calibration], activation: ir.Value, channels: int) -> Calibration | None:
    found = calibration.get(str(activation.name))
    return found if found is not None and len(found.factors) == channels else None
