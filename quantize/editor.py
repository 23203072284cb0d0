"""Small changes to a graph that all rewritings share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from quantize.smoothing import initializer

__all__ = ["Editor"]


@dataclass
class Editor:
    """Adds nodes and constants to one graph; a constant of a name is there once, whoever asks for it."""

    graph: ir.Graph
    _constants: dict[str, ir.Value] = field(default_factory=dict)

    def op(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        output: str,
        before: ir.Node,
        *,
        domain: str = "",
        attributes: Mapping[str, int | ir.Attr] | None = None,
        node_name: str | None = None,
    ) -> ir.Value:
        """Insert a node before another one; return its output, named ``output``, as is the node by default."""
        node = ir.node(op_type, inputs, attributes=attributes, domain=domain, name=node_name or output)
        node.outputs[0].name = output
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def scalar(self, name: str, value: np.generic) -> ir.Value:
        """Return a scalar that the whole graph shares."""
        return self.constant(f"quantization.{name}", np.asarray(value))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return a constant; of one that is there already, ``array`` is not looked at."""
        if name not in self._constants:
            self._constants[name] = initializer(self.graph, ir.tensor(np.asarray(array), name=name))
        return self._constants[name]

    def replace(self, node: ir.Node, result: ir.Value, also: ir.Node | None = None) -> None:
        """Let ``result`` take the place, name and shape of the node's output; remove the node, and another one."""
        (output,) = node.outputs
        result.shape, result.type = output.shape, output.type
        name = output.name
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        if also is not None and also is not node:
            self.graph.remove(also, safe=True)
        result.name = name
