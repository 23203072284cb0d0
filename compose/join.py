"""Graphs joined into one; their weights stay in the files where they are until the whole is written.

Then onnx_ir copies them from file to file. Whoever asked a tensor for its values would have it in memory from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from omni.graph_builder import GraphBuilder, port_value
from qwen_omni_onnx.common.contract import Port
from qwen_omni_onnx.common.errors import UserError

__all__ = ["GraphComposer", "port_value"]


class GraphComposer:
    """A graph that grows part by part.

    Whatever a part has names for gets the part's name in front: nodes, values, weights, and symbolic axes, by which
    ONNX Runtime decides what has the same size and may share memory.
    """

    def __init__(self) -> None:
        self._builder = GraphBuilder(ir.Graph([], [], nodes=[]))

    def add(self, part: str, model: ir.Model, fed: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """Put a graph behind what is there; return its outputs by the names that they had.

        Args:
            part: A name for it.
            model: Is taken apart; its weights are not read.
            fed: What each of its inputs is.

        Raises:
            UserError: The graph takes other inputs, or another version of the operators than the parts before it.
        """
        graph = model.graph
        taken = {str(value.name) for value in graph.inputs}
        if taken != set(fed):
            raise UserError(f"{part}: takes {_listed(taken)}, not {_listed(fed)}; export it again")
        whole = self._builder.graph
        for domain, version in graph.opset_imports.items():
            if (before := whole.opset_imports.setdefault(domain, version)) != version:
                raise UserError(f"{part}: operators of {domain or 'ai.onnx'} {version}, not {before}")
        for value in graph.inputs:
            value.replace_all_uses_with(fed[str(value.name)])
        outputs = {str(value.name): value for value in graph.outputs}
        nodes, weights = list(graph), list(graph.initializers.values())
        _rename(part, [*graph.all_nodes()], weights)
        graph.remove(nodes)
        for kept in (graph.initializers, graph.inputs, graph.outputs):
            kept.clear()
        whole.extend(nodes)
        for weight in weights:
            whole.register_initializer(weight)
        return outputs

    def op(self, op_type: str, inputs: list[ir.Value], name: str, **attributes: int | list[int]) -> ir.Value:
        """Put one node behind what is there; return its output."""
        return self._builder.op(op_type, inputs, name, node_name=f"{name}/{op_type}", attributes=attributes)

    def constant(self, name: str, *values: int) -> ir.Value:
        """Return a vector of integers."""
        return self._builder.constant(name, np.array(values, np.int64))

    def model(self, name: str, inputs: list[ir.Value], outputs: Mapping[ir.Value, Port], ir_version: int) -> ir.Model:
        """Return the whole, without what nothing reads."""
        self._builder.graph.name = name
        self._builder.graph.inputs.extend(inputs)
        model = self._builder.model(outputs, ir_version)
        RemoveUnusedNodesPass()(model)
        return model


def _rename(part: str, nodes: list[ir.Node], weights: list[ir.Value]) -> None:
    """Put a part's name before all names of it, those inside of loops too."""
    for value in _values(nodes):
        if value.name:  # an output that is left out has none
            value.name = f"{part}/{value.name}"
        if value.shape is not None:
            value.shape = ir.Shape([axis if isinstance(axis, int) else _axis(part, axis.value) for axis in value.shape])
    for node in nodes:
        node.name = f"{part}/{node.name}"
    for weight in weights:
        weight.name = f"{part}/{weight.name}"  # and its tensor's


def _values(nodes: list[ir.Node]) -> Iterator[ir.Value]:
    for node in nodes:
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().inputs


def _axis(part: str, axis: str | None) -> str | None:
    return f"{part}/{axis}" if axis else None


def _listed(names: Mapping[str, ir.Value] | set[str]) -> str:
    return ", ".join(sorted(names))
