"""Times a graph in pieces, where its float32 graph is too large to be opened whole.

A piece is what lies between two places where few values pass, such as the residual stream of a decoder: these values
have the same names in the float32 and in the quantized graph, so that both can be cut there. Pieces whose operators and
weights have the same shapes take the same time: one of each kind is timed, and counted as often as there are such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from omni import segments
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.session import open_session, run
from validate.measured import MeasuredGraph

__all__ = ["Piece", "pieces"]


@dataclass(frozen=True)
class _Cut:
    """Names of the values of earlier pieces that a piece reads, and of those that it computes for others."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Piece(MeasuredGraph):
    """Consecutive nodes of a graph.

    Attributes:
        cut: Where the piece begins and ends.
        times: Number of pieces of the graph that are like this one.
        fed: Inputs of the piece, by length.
    """

    cut: _Cut
    times: int
    fed: Mapping[int, Mapping[str, np.ndarray]]

    def feed(self, length: int) -> Mapping[str, np.ndarray]:
        """Return the inputs of the piece while the graph runs at one of the lengths that it was cut for."""
        return self.fed[length]

    def open(self, kind: str, **options: Any) -> ort.InferenceSession:
        """Open a session of these nodes of the graph of a kind."""
        model, file = _extracted(self, kind, self.cut), self.files[kind]
        example = next(iter(self.fed.values()))
        for value in model.graph.inputs:
            value.type = ir.TensorType(ir.DataType.from_numpy(example[str(value.name)].dtype))
        return open_session(ir.to_proto(model).SerializeToString(), data_folder=file.parent, **options)


def pieces(graph: MeasuredGraph, lengths: Sequence[int]) -> list[Piece]:
    """Return one piece of each kind that a graph consists of.

    Args:
        graph: A graph that is quantized. The quantized graph is opened whole.
        lengths: Lengths at which the pieces are to be timed.
    """
    quantized = ir.load(graph.files[QUANTIZED])
    known = {str(value.name) for node in quantized.graph for value in node.outputs}
    counts: Counter[str] = Counter()
    timed: dict[str, tuple[_Cut, frozenset[str]]] = {}
    for cut in _cuts(ir.load(graph.files[FLOAT]).graph, known):
        models = [_extracted(graph, kind, cut) for kind in (FLOAT, QUANTIZED)]
        signature = str([_signature(model.graph) for model in models])
        counts[signature] += 1
        timed.setdefault(signature, (cut, _named(value for model in models for value in model.graph.inputs)))
    values = _values(graph, quantized, {name for cut, _ in timed.values() for name in cut.reads}, lengths)
    found = []
    for signature, (cut, read) in timed.items():
        fed = {length: {name: values[length][name] for name in read} for length in lengths}
        found.append(Piece(**vars(graph), cut=cut, times=counts[signature], fed=fed))
    return found


def _cuts(graph: ir.Graph, known: set[str]) -> list[_Cut]:
    """Cut a graph into pieces of at most ``SEGMENT_BYTES`` of weights, or of one node, where the fewest values pass.

    Args:
        graph: The float32 graph.
        known: Names of the values that may pass: those that the quantized graph has, too.
    """
    constants = segments.constant_weights(graph)
    nodes = [node for node in graph if not all(value in constants for value in node.outputs)]
    passing = [_named(values) for values in _passing(nodes)]
    outputs = {str(value.name) for value in graph.outputs}
    cuts, first = [], 0
    while first < len(nodes):
        after = _end(nodes, constants, passing, first, known)
        made = {str(value.name) for node in nodes[first:after] for value in node.outputs}
        here = {str(value.name) for node in nodes[first:after] for value in node.inputs if value is not None}
        before, behind = (passing[place - 1] if place else frozenset[str]() for place in (first, after))
        cuts.append(_Cut(tuple(sorted(before & here)), tuple(sorted(made & (behind | outputs)))))
        first = after
    return cuts


def _end(
    nodes: Sequence[ir.Node],
    constants: Mapping[ir.Value, frozenset[ir.Value]],
    passing: Sequence[frozenset[str]],
    first: int,
    known: set[str],
) -> int:
    """Return the number of the node that begins the next piece."""
    loaded, best = frozenset[ir.Value](), None
    for place in range(first, len(nodes)):
        read = (value for value in nodes[place].inputs if value is not None)
        loaded |= frozenset(chain.from_iterable(constants.get(value, ()) for value in read))
        if best is not None and segments.session_bytes(loaded) > segments.SEGMENT_BYTES:
            return best + 1
        if passing[place] <= known and (best is None or len(passing[place]) <= len(passing[best])):
            best = place
    return len(nodes)


def _passing(nodes: Sequence[ir.Node]) -> list[set[ir.Value]]:
    """Return, for each node, the values that nodes up to it compute and nodes after it read."""
    computed = {value for node in nodes for value in node.outputs}
    found, needed = [], set[ir.Value]()
    for node in reversed(nodes):
        found.append(set(needed))
        needed -= set(node.outputs)
        needed |= {value for value in node.inputs if value in computed}
    return found[::-1]


def _named(values: Iterable[ir.Value]) -> frozenset[str]:
    return frozenset(str(value.name) for value in values)


def _extracted(graph: MeasuredGraph, kind: str, cut: _Cut) -> ir.Model:
    """Return a model of the nodes of one kind of graph that compute what a piece writes from what it reads."""
    model = ir.load(graph.files[kind])
    inputs, pending, seen = set[str](), [value for value in _outputs(model.graph) if value.name in cut.writes], set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.name in cut.reads or value.is_graph_input():
            inputs.add(str(value.name))
        elif (maker := value.producer()) is not None:
            pending += [read for read in maker.inputs if read is not None]
    return ir.Model(ir.convenience.extract(model.graph, sorted(inputs), list(cut.writes)), ir_version=model.ir_version)


def _outputs(graph: ir.Graph) -> Iterable[ir.Value]:
    return (value for node in graph for value in node.outputs)


def _signature(graph: ir.Graph) -> object:
    """Return what a graph's time depends on: operators, their attributes, and their weights' shapes and types."""

    def weight(value: ir.Value | None) -> object:
        tensor = None if value is None else value.const_value
        return None if tensor is None else (tuple(tensor.shape.numpy()), tensor.dtype)

    def attributes(node: ir.Node) -> object:
        return sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())

    return [(node.domain, node.op_type, [*map(weight, node.inputs)], attributes(node)) for node in graph]


def _values(
    graph: MeasuredGraph, quantized: ir.Model, names: Collection[str], lengths: Sequence[int]
) -> dict[int, dict[str, np.ndarray]]:
    """Return inputs and named values of the quantized graph by length, while it runs whole."""
    quantized.graph.outputs.clear()
    quantized.graph.outputs.extend(value for value in _outputs(quantized.graph) if value.name in names)
    folder = graph.files[QUANTIZED].parent
    session = open_session(ir.to_proto(quantized).SerializeToString(), data_folder=folder, low_memory=True)
    found = {}
    for length in lengths:
        fed = dict(graph.feed(length))
        found[length] = fed | run(session, fed)
    return found
