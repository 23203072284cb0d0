"""Joins graphs into one, whose weights stay in their files until the composed graph is written.

onnx_ir then copies them from file to file. Reading a tensor's values before would keep them in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from omni.graph_builder import GraphBuilder, port_value
from omni.streamed import initializers
from qwen_omni_onnx.common.contract import Port
from qwen_omni_onnx.common.errors import UserError

__all__ = ["GraphComposer", "port_value"]


class GraphComposer:
    """Composes a graph from others, one after another.

    All names in an added graph get a prefix: those of nodes, values, weights and symbolic axes. ONNX Runtime takes axes
    of one name for equally long, and lets values share memory by that.
    """

    def __init__(self) -> None:
        self._builder = GraphBuilder(ir.Graph([], [], nodes=[]))

    def add(self, prefix: str, model: ir.Model, inputs: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """Append a graph; return its outputs by their original names.

        Args:
            prefix: Prefix of all names in the graph.
            model: Model whose nodes and weights move into the composed graph; the weights are not read.
            inputs: Value for each of the graph's inputs.

        Raises:
            UserError: The graph has other inputs, or another opset version than the graphs before it.
        """
        graph = model.graph
        names = {str(value.name) for value in graph.inputs}
        if names != set(inputs):
            raise UserError(f"{prefix}: takes {_joined(names)}, not {_joined(inputs)}; export it again")
        composed = self._builder.graph
        for domain, version in graph.opset_imports.items():
            if (expected := composed.opset_imports.setdefault(domain, version)) != version:
                raise UserError(f"{prefix}: operators of {domain or 'ai.onnx'} {version}, not {expected}")
        for value in graph.inputs:
            value.replace_all_uses_with(inputs[str(value.name)])
        outputs = {str(value.name): value for value in graph.outputs}
        nodes, weights = list(graph), list(graph.initializers.values())
        _add_prefix(prefix, [*graph.all_nodes()], list(initializers(model)))
        graph.remove(nodes)
        for collection in (graph.initializers, graph.inputs, graph.outputs):
            collection.clear()
        composed.extend(nodes)
        for weight in weights:
            composed.register_initializer(weight)
        return outputs

    def op(self, op_type: str, inputs: list[ir.Value], name: str, **attributes: int | list[int]) -> ir.Value:
        """Append one node; return its output."""
        return self._builder.op(op_type, inputs, name, node_name=f"{name}/{op_type}", attributes=attributes)

    def constant(self, name: str, *values: int) -> ir.Value:
        """Return a constant INT64 vector."""
        return self._builder.constant(name, np.array(values, np.int64))

    def model(self, name: str, inputs: list[ir.Value], outputs: Mapping[ir.Value, Port], ir_version: int) -> ir.Model:
        """Return the composed graph as a model, without nodes whose outputs nothing reads."""
        self._builder.graph.name = name
        self._builder.graph.inputs.extend(inputs)
        model = self._builder.model(outputs, ir_version)
        RemoveUnusedNodesPass()(model)
        return model


def _add_prefix(prefix: str, nodes: list[ir.Node], weights: list[ir.Value]) -> None:
    """Add a prefix to all names in a graph, including those in bodies of loops."""
    for value in _values(nodes):
        if value.name:  # an omitted output has no name
            value.name = f"{prefix}/{value.name}"
        if value.shape is not None:
            value.shape = ir.Shape(
                [axis if isinstance(axis, int) else _axis(prefix, axis.value) for axis in value.shape]
            )
    for node in nodes:
        node.name = f"{prefix}/{node.name}"
    for weight in weights:
        weight.name = f"{prefix}/{weight.name}"  # also renames the tensor


def _values(nodes: list[ir.Node]) -> Iterator[ir.Value]:
    for node in nodes:
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().inputs


def _axis(prefix: str, axis: str | None) -> str | None:
    return f"{prefix}/{axis}" if axis else None


def _joined(names: Mapping[str, ir.Value] | set[str]) -> str:
    return ", ".join(sorted(names))
