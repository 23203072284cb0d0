"""A graph under construction: nodes with the names of the checkpoint's modules, and initializers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from omni.streamed import StreamedTensor
from qwen_omni_onnx.common.contract import GraphContract, Port

__all__ = ["CONTRIB", "Construction"]

CONTRIB = "com.microsoft"
_OPSET = 21


class Construction:
    """Collects what becomes an onnx_ir model.

    Nodes are named ``<module>/<operator>``, as ``export.trace`` names them, and so are the values that they give.

    Args:
        name: of the graph.
        contract: its interface.
    """

    def __init__(self, name: str, contract: GraphContract) -> None:
        self._name = name
        self._contract = contract
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._named: Counter[str] = Counter()
        self._inputs = {port.name: _value(port) for port in contract.inputs}

    def input(self, name: str) -> ir.Value:
        """Return an input of the contract."""
        return self._inputs[name]

    def op(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        module: str,
        *,
        as_if: str | None = None,
        domain: str = "",
        attributes: Mapping[str, int | float] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """Append a node with one output, and return that."""
        (output,) = self.ops(op_type, inputs, module, 1, as_if=as_if, domain=domain, attributes=attributes, dtype=dtype)
        return output

    def ops(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        module: str,
        outputs: int,
        *,
        as_if: str | None = None,
        domain: str = "",
        attributes: Mapping[str, int | float] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> list[ir.Value]:
        """Append a node, and return its outputs.

        Args:
            op_type: the operator.
            inputs: of the node.
            module: whose work it does.
            outputs: how many.
            as_if: the operator to name the node after, if not its own.
            domain: of the operator.
            attributes: of the node.
            dtype: of all its outputs.
        """
        name = f"{module}/{as_if or op_type}"
        self._named[name] += 1
        if self._named[name] > 1:
            name = f"{name}_{self._named[name]}"
        node = ir.node(op_type, inputs, attributes=attributes, num_outputs=outputs, domain=domain, name=name)
        for number, output in enumerate(node.outputs):
            output.name = name if number == 0 else f"{name}.{number}"
            output.type = ir.TensorType(dtype)
        self._nodes.append(node)
        return list(node.outputs)

    def unused(self, value: ir.Value) -> None:
        """Say that nobody reads an output of a node: the operator then need not make it."""
        value.name, value.type = "", None

    def streamed(self, tensor: StreamedTensor) -> ir.Value:
        """Return an initializer that is read when the graph is written."""
        return self._initializer(str(tensor.name), tensor)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return a small initializer; the same one for the same name."""
        if name in self._initializers:
            return self._initializers[name]
        return self._initializer(name, ir.tensor(array, name=name))

    def finish(self, results: dict[str, ir.Value]) -> ir.Model:
        """Return the model, with ``results`` as the contract's outputs."""
        for port in self._contract.outputs:
            value, promised = results[port.name], _value(port)
            value.name, value.shape, value.type = promised.name, promised.shape, promised.type
        graph = ir.Graph(
            list(self._inputs.values()),
            [results[port.name] for port in self._contract.outputs],
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": _OPSET, CONTRIB: 1},
            name=self._name,
        )
        return ir.Model(graph, ir_version=self._contract.ir_version)

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name in self._initializers:
            raise ValueError(f"two initializers named {name}")
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._initializers[name] = value
        return value


def _value(port: Port) -> ir.Value:
    return ir.Value(name=port.name, shape=ir.Shape(port.shape), type=ir.TensorType(ir.DataType[port.dtype]))
