"""Parts of a matrix with schemes of their own: the queries, keys and values that one MatMul makes for attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from omni.graph_builder import GraphBuilder
from omni.grouped_query import neighbours, packed_parts
from omni.imported import IMPORT
from omni.params import QuantizeParams
from omni.patterns import first_match
from omni.weight import Weight
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Parts", "Piece", "split"]


@dataclass(frozen=True)
class Piece:
    """A MatMul that is quantized by one scheme: a node of the graph, or a part of one.

    Attributes:
        node: The node.
        weight: Its matrix.
        scheme: Its scheme.
        damping: Damping of the compensation of its rounding errors; None if they are not compensated.
    """

    node: ir.Node
    weight: Weight
    scheme: str
    damping: float | None


class Parts:
    """Schemes of nodes, and of the parts that a node has.

    Args:
        params: Schemes of all nodes, and of single ones.
        weights: Matrices of the graph's MatMuls.
    """

    def __init__(self, params: QuantizeParams, weights: Mapping[ir.Node, Weight]) -> None:
        self._params = params
        self._columns = {node: packed_parts(node.outputs[0], weight.shape[1]) for node, weight in weights.items()}

    @property
    def names(self) -> list[str]:
        """Names that a pattern may match: those of all nodes, and of their parts."""
        return [name for node, columns in self._columns.items() for name in (str(node.name), *_names(node, columns))]

    def schemes(self, node: ir.Node) -> set[str]:
        """Return the schemes of a node's parts, or its own."""
        return {scheme for scheme, _ in self.choices(node).values()}

    def choices(self, node: ir.Node) -> dict[str, tuple[str, float | None]]:
        """Return scheme and damping of each part by its name; of a node without parts, its own by the node's name."""
        name = str(node.name)
        return {part: self._choice(part, name) for part in _names(node, self._columns[node]) or [name]}

    def columns(self, node: ir.Node) -> list[slice]:
        """Return the columns of each part, in order."""
        return list(self._columns[node].values())

    def _choice(self, part: str, node: str) -> tuple[str, float | None]:
        scheme = first_match(self._params.nodes, part, node) or self._params.scheme
        return scheme, first_match(self._params.compensation, part, node)


def split(node: ir.Node, parts: Parts, weights: Mapping[ir.Node, Weight], builder: GraphBuilder) -> list[Piece]:
    """Return the node as one piece; or, where its parts have several schemes, put MatMuls and a Concat in its place.

    Neighbouring parts with the same scheme stay one MatMul: ``.../MatMul.q_proj.k_proj`` and ``.../MatMul.v_proj``.

    Raises:
        UserError: Some parts are imported, and others are not.
    """
    choices, name, weight = parts.choices(node), str(node.name), weights[node]
    if len(set(choices.values())) == 1:
        scheme, damping = next(iter(choices.values()))
        return [Piece(node, weight, scheme, damping)]
    if IMPORT in parts.schemes(node):
        raise UserError(f"{name}: {IMPORT} takes queries, keys and values together; give all of them that scheme")
    pieces, products, columns = [], [], parts.columns(node)
    for suffix, places, (scheme, damping) in neighbours(name, choices):
        product = builder.op(
            "MatMul", node.inputs, f"{name}.product{suffix}", node, node_name=f"{name}{suffix}", dtype=ir.DataType.FLOAT
        )
        products.append(product)
        some = slice(columns[places][0].start, columns[places][-1].stop)
        pieces.append(Piece(product.producer(), weight.part(some), scheme, damping))
    axis = {"axis": -1}
    whole = builder.op("Concat", products, f"{name}.product", node, attributes=axis, node_name=name)
    builder.replace(node, whole)
    return pieces


def _names(node: ir.Node, columns: Mapping[str, slice]) -> list[str]:
    return [f"{node.name}.{part}" for part in columns]
