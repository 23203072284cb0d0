"""Run only what a change of a graph can reach, on activations that the unchanged graph gave.

Quantizing one node leaves everything before it as it was, so that the measurement of 193 nodes need not run the whole
encoder 193 times: the last layer's nodes cost a layer, the first one's all of them, half on average. Weights stay where
they lie on disk; only those that the change touched are put into the graph's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from omni.stored import narrow
from qwen_omni_onnx.common.session import open_session, run

__all__ = ["Suffix", "record", "reuse_weights", "signatures"]

Signature = tuple[str, str, str | None, tuple[str | None, ...]]


def signatures(graph: ir.Graph) -> set[Signature]:
    """Return signatures of a graph's nodes, by which those of a changed graph are known to be as they were."""
    return {_signature(node) for node in graph}


def reuse_weights(model: ir.Model, original: ir.Graph) -> None:
    """Let the nodes of a changed graph that are as the original's read the weights in the original's file.

    Otherwise each change of a quantized graph would quantize all of it again. Weights of the other nodes are computed
    when the graph is serialized, or read now where they lie in another file.

    Args:
        model: Changed graph. Weights that it shares with the original have the original's names, and equal values.
        original: The original, loaded from its file.
    """
    known = signatures(original)
    own = {value.name for node in model.graph if _signature(node) not in known for value in node.inputs if value}
    for name, value in model.graph.initializers.items():
        if name not in own and name in original.initializers:
            value.const_value = original.initializers[name].const_value
        elif isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=name)


def record(
    graph_file: Path, names: set[str], fed: Mapping[str, np.ndarray], *, prepack: bool = False
) -> dict[str, np.ndarray]:
    """Run the original graph once; return its inputs, its outputs, and the values of these names.

    ``prepack``: see :func:`qwen_omni_onnx.common.session.open_session`.
    """
    model = ir.load(graph_file)
    results = (value for node in model.graph for value in node.outputs)
    model.graph.outputs.extend(value for value in results if value.name in names and not value.is_graph_output())
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=graph_file.parent, prepack=prepack)
    return {**fed, **run(session, fed)}


class Suffix:
    """The nodes of a changed graph that give other values than the original's, up to one output.

    Attributes:
        frontier: Names of the values that they read, all of them the original's.
    """

    def __init__(self, model: ir.Model, original: set[Signature], output: str) -> None:
        """Find the nodes.

        Args:
            model: Changed graph. Values that it shares with the original have the original's names.
            original: Signatures of the original's nodes.
            output: Name of the output that is compared.
        """
        changed, constant = _changed_and_constant(model.graph, original)
        self.frontier: set[str] = set()
        (wanted,) = (value for value in model.graph.outputs if value.name == output)
        if wanted in changed:
            self.frontier = _frontier(wanted, changed, constant)
        self._model, self._output = model, output

    def run(self, recorded: Mapping[str, np.ndarray], folder: Path, *, prepack: bool) -> np.ndarray:
        """Run the nodes; return the output.

        Args:
            recorded: Values of the original by name, all of ``frontier`` and the output.
            folder: Folder of the original's external data.
            prepack: See :func:`qwen_omni_onnx.common.session.open_session`.
        """
        if not self.frontier:
            return recorded[self._output]
        graph = ir.convenience.extract(self._model.graph, sorted(self.frontier), [self._output])
        for value in graph.inputs:
            array = recorded[str(value.name)]
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        narrow(graph)  # weights that are stored in 16 bits are read where they lie, as all others
        model = ir.Model(graph, ir_version=self._model.ir_version)
        session = open_session(ir.to_proto(model).SerializeToString(), data_folder=folder, prepack=prepack)
        return run(session, {name: recorded[name] for name in self.frontier})[self._output]


def _signature(node: ir.Node) -> Signature:
    return node.domain, node.op_type, node.name, tuple(value.name if value else None for value in node.inputs)


def _changed_and_constant(graph: ir.Graph, original: set[Signature]) -> tuple[set[ir.Value], set[ir.Value]]:
    """Return the results of nodes that differ from the original's, and those that no input can alter.

    The latter are left in the graph with the nodes that give them: the optimizer fuses by them.
    """
    changed: set[ir.Value] = set()
    constant: set[ir.Value] = {value for value in graph.initializers.values() if not value.is_graph_input()}
    for node in graph:  # in topological order
        read = [value for value in node.inputs if value is not None]
        if _signature(node) not in original or any(value in changed for value in read):
            changed.update(node.outputs)
        elif all(value in constant for value in read):
            constant.update(node.outputs)
    return changed, constant


def _frontier(output: ir.Value, changed: set[ir.Value], constant: set[ir.Value]) -> set[str]:
    """Walk back from the output through changed values; return the names of the others that are met."""
    found: set[str] = set()
    seen, pending = {output}, [output]
    while pending:
        producer = pending.pop().producer()
        assert producer is not None  # a changed value is the result of a node
        for value in producer.inputs:
            if value is None or value in seen or value in constant:
                continue
            seen.add(value)
            if value in changed:
                pending.append(value)
            else:
                found.add(str(value.name))
    return found
