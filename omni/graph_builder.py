"""Builder of graphs: adds nodes and initializers on onnx_ir's tape, under names that are the same in every build.

One builder serves the decoders, which are constructed node by node, the graphs that are composed of others, and the
rewrites that quantize: they differ only in where a node goes, to the end of the graph or before another node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from qwen_omni_onnx.common.contract import GraphContract, Port

__all__ = ["CONTRIB", "OPSET", "GraphBuilder", "port_value"]

CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operators
OPSET = 21


class GraphBuilder:
    """Adds nodes and initializers to one graph.

    Args:
        graph: The graph, empty or not.
        dtype: Default type of the nodes' outputs; None leaves them without a type.
    """

    def __init__(self, graph: ir.Graph, dtype: ir.DataType | None = None) -> None:
        self.graph = graph
        self._dtype = dtype
        self._tape = Tape(graph)
        self._names: Counter[str] = Counter()
        self._constants: dict[str, ir.Value] = {}

    @classmethod
    def of(cls, name: str, contract: GraphContract, dtype: ir.DataType) -> GraphBuilder:
        """Return a builder of a new graph with the inputs of a contract."""
        inputs = [port_value(port) for port in contract.inputs]
        return cls(ir.Graph(inputs, [], nodes=[], opset_imports={"": OPSET, CONTRIB: 1}, name=name), dtype)

    def input(self, name: str) -> ir.Value:
        """Return an input of the graph."""
        return next(value for value in self.graph.inputs if value.name == name)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str = "",
        before: ir.Node | None = None,
        *,
        output: ir.Value | None = None,
        **options: Any,
    ) -> ir.Value:
        """Add a node with one output; return the output.

        Args:
            op_type: Operator type.
            inputs: Inputs of the node.
            name: Name of the output, and of the node.
            before: Node before which the new one is inserted; None appends it to the graph.
            output: Value that becomes the output, where it already has consumers; None makes a new one.
            options: Other arguments of :meth:`ops`.
        """
        (result,) = self.ops(op_type, inputs, name, before, outputs=1 if output is None else [output], **options)
        return result

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str = "",
        before: ir.Node | None = None,
        *,
        outputs: int | Sequence[ir.Value],
        module: str = "",
        node_name: str = "",
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType | None = None,
    ) -> Sequence[ir.Value]:
        """Add a node; return its outputs.

        Args:
            op_type: Operator type.
            inputs: Inputs of the node.
            name: Name of the first output, and of the node; the other outputs are ``<name>.1`` and so on. A name that
                the builder has used before gets a number: ``<name>_2``.
            before: Node before which the new one is inserted; None appends it to the graph.
            outputs: Number of outputs, or the values that become the outputs.
            module: Module of the checkpoint that the node belongs to; the default name is ``<module>/<op_type>``, as
                ``export.trace`` names nodes.
            node_name: Name of the node, if it differs from the output's.
            domain: Domain of the operator.
            attributes: Attributes of the node.
            dtype: Type of the outputs; None takes the builder's.
        """
        if isinstance(outputs, int):
            name = self._numbered(name or f"{module}/{op_type}")
            dtype = dtype or self._dtype
            tensor_type = None if dtype is None else ir.TensorType(dtype)
            names = [name, *(f"{name}.{number}" for number in range(1, outputs))]
            outputs = [ir.Value(name=output_name, type=tensor_type) for output_name in names]
        results = self._tape.op_multi_out(
            op_type, inputs, attributes, outputs=outputs, domain=domain, name=node_name or name
        )
        node = results[0].producer()
        assert node is not None
        if before is not None:
            self.graph.insert_before(before, node)
        return results

    def unused(self, value: ir.Value) -> None:
        """Omit an optional output of a node that nothing reads: the operator then need not compute it."""
        value.name, value.type = "", None

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Return a new initializer, named after its tensor.

        Raises:
            ValueError: The graph has an initializer of that name.
        """
        return self._tape.initializer(tensor)

    def constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        """Return a small initializer; a second call with the same name returns the first one, whatever the array."""
        if name not in self._constants:
            self._constants[name] = self.initializer(ir.tensor(np.asarray(array), name=name))
        return self._constants[name]

    def replace(self, node: ir.Node, result: ir.Value, also: ir.Node | None = None) -> None:
        """Replace a node's output by a value, which takes over its name and shape; remove the node.

        Args:
            node: The node, which has one output.
            result: The value.
            also: Another node to remove, whose output only ``node`` reads; None if there is none.
        """
        (output,) = node.outputs
        result.shape, result.type = output.shape, output.type
        name = output.name
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        if also is not None and also is not node:
            self.graph.remove(also, safe=True)
        result.name = name

    def model(self, outputs: Mapping[ir.Value, Port], ir_version: int) -> ir.Model:
        """Return the graph as a model.

        Args:
            outputs: The graph's outputs, each with the port whose name, shape and type it gets.
            ir_version: ONNX's IR version.
        """
        for value, port in outputs.items():
            value.name, value.shape, value.type = port.name, ir.Shape(port.shape), _type(port)
            self.graph.outputs.append(value)
        return ir.Model(self.graph, ir_version=ir_version)

    def _numbered(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"


def port_value(port: Port) -> ir.Value:
    """Return the value that a port of a contract describes."""
    return ir.Value(name=port.name, shape=ir.Shape(port.shape), type=_type(port))


def _type(port: Port) -> ir.TensorType:
    return ir.TensorType(ir.DataType[port.dtype])
