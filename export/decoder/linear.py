"""One linear layer of a decoder, in float32 or quantized: its operator, and the layout of its matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from export.decoder.weights import Matrix, block_quantized, vector
from omni import nbits
from omni.graph_builder import GraphBuilder
from omni.grouped_query import neighbours
from omni.imported import IMPORT, PackedLayers, packed_layers
from omni.patterns import first_match, unmatched
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Linear", "Schemes"]

_BITS = {"int8-block": 8, "int4-block": 4}


@dataclass(frozen=True)
class Schemes:
    """The scheme of each matrix.

    Attributes:
        default: ``float32``, ``int8-block``, ``int4-block`` or ``int4-import``.
        block: Inputs of an output that share a scale; ``int4-import`` has the checkpoint's.
        nodes: Other schemes, by pattern of node names: ``{"*.down_proj/*": "int8-block"}``. The first match counts.
    """

    default: str = "float32"
    block: int = 32
    nodes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for scheme in (self.default, *self.nodes.values()):
            if scheme not in (known := ("float32", *_BITS, IMPORT)):
                raise UserError(f"scheme {scheme!r}: a decoder is built as one of {', '.join(known)}")

    def of(self, *names: str) -> str:
        """Return the scheme of a node; a part of one has its own name and the node's."""
        return first_match(self.nodes, *names) or self.default

    def require_used(self, nodes: Iterable[str]) -> None:
        """Refuse a pattern that no node fits: it is misspelt, and what it should spare is quantized.

        Raises:
            UserError: A pattern fits no node.
        """
        nodes = list(nodes)
        for pattern in unmatched(self.nodes, nodes):
            raise UserError(f"no node of the graph fits {pattern!r}; there is, for instance, {nodes[0]}")


@dataclass
class Linear:
    """Appends linear layers to a graph.

    Attributes:
        builder: Builder of the graph.
        schemes: Schemes of the matrices.
        names: Names of the nodes that have been added for a matrix.
    """

    builder: GraphBuilder
    schemes: Schemes
    names: list[str] = field(default_factory=list)
    _ordered: dict[tuple[str | None, bytes], ir.Value] = field(default_factory=dict)

    def __call__(self, activation: ir.Value, matrix: Matrix, module: str, bias: tuple[str, ...] = ()) -> ir.Value:
        """Return ``activation @ matrix.T + bias``, [batch, seq, outputs], or [batch, kept, outputs] of the head.

        Args:
            activation: The activation, [batch, seq, inputs] or [batch, kept, inputs], with its shape set.
            matrix: The matrix, [outputs, inputs].
            module: The module that the node is named after.
            bias: Tensors of the checkpoint that make up the bias, end to end.
        """
        product = self._product(activation, matrix, module)
        assert activation.shape is not None, f"{module} reads a value without a shape"
        product.shape = ir.Shape([*activation.shape[:-1], matrix.shape[0]])
        if not bias:
            return product
        added = self.builder.initializer(vector(matrix.checkpoint, bias, f"{module}.bias"))
        result = self.builder.op("Add", [product, added], module=module)
        result.shape = product.shape
        return result

    def in_slices(self, activation: ir.Value, matrix: Matrix, module: str, largest: int) -> ir.Value:
        """Return ``activation @ matrix.T`` by slices of at most ``largest`` values of the matrix, as even as can be.

        A vocabulary's matrix is many times larger than any other, and all of a matrix is in memory while it is
        transposed. In slices, the largest one of a layer sets the peak.
        """
        outputs, inputs = matrix.shape
        count = -(-outputs * inputs // largest)
        if count == 1:
            return self(activation, matrix, module)
        rows = -(-outputs // count)
        (name,) = matrix.names
        products = [
            self(
                activation,
                Matrix(matrix.checkpoint, (name,), slice(start, min(start + rows, outputs))),
                f"{module}.{number}",
            )
            for number, start in enumerate(range(0, outputs, rows))
        ]
        return self.builder.op("Concat", products, module=module, attributes={"axis": -1})

    def _product(self, activation: ir.Value, matrix: Matrix, module: str) -> ir.Value:
        """Append a matrix by its scheme; where its layers have several, neighbours with the same one, and a Concat."""
        node = f"{module}/MatMul"
        self.names.append(node)
        if len(matrix.names) == 1:
            return self._append(activation, matrix, module, self.schemes.of(node))
        parts = [f"{node}.{name.split('.')[-2]}" for name in matrix.names]
        self.names += parts
        schemes = {part: self.schemes.of(part, node) for part in parts}
        if len(set(schemes.values())) == 1:
            return self._append(activation, matrix, module, schemes[parts[0]])
        products = [
            self._append(activation, Matrix(matrix.checkpoint, matrix.names[places]), module, scheme, suffix)
            for suffix, places, scheme in neighbours(node, schemes)
        ]
        return self.builder.op("Concat", products, module=module, attributes={"axis": -1})

    def _append(self, activation: ir.Value, matrix: Matrix, module: str, scheme: str, suffix: str = "") -> ir.Value:
        append = {"float32": self._float32, IMPORT: self._import}.get(scheme, partial(self._block, scheme))
        return append(activation, matrix, module, suffix)

    def _float32(self, activation: ir.Value, matrix: Matrix, module: str, suffix: str) -> ir.Value:
        weight = self.builder.initializer(matrix.transposed(f"{module}.weight{suffix}"))
        return self.builder.op("MatMul", [activation, weight], f"{module}/MatMul{suffix}")

    def _block(self, scheme: str, activation: ir.Value, matrix: Matrix, module: str, suffix: str) -> ir.Value:
        """Append a MatMulNBits with a scale for every block of an output's weights."""
        stored = block_quantized(matrix, self.schemes.block, _BITS[scheme])
        return self._matmul_nbits(activation, stored, module, suffix)

    def _import(self, activation: ir.Value, matrix: Matrix, module: str, suffix: str) -> ir.Value:
        """Append a MatMulNBits over the checkpoint's own 4-bit codes, in its own groups."""
        layers = packed_layers(matrix.checkpoint, matrix.names, f"{module}/MatMul{suffix}", matrix.shape[0])
        if len(layers) == 1:
            return self._packed(activation, layers[0], f"{module}{suffix}")
        products = [self._packed(activation, layer, f"{module}.{layer.leaf}") for layer in layers]
        return self.builder.op("Concat", products, module=module, attributes={"axis": -1})

    def _packed(self, activation: ir.Value, layer: PackedLayers, module: str) -> ir.Value:
        if layer.permutation is not None:
            activation = self._in_order(activation, layer.permutation, module)
        return self._matmul_nbits(activation, layer.matrix, module)

    def _matmul_nbits(self, activation: ir.Value, matrix: nbits.BlockMatrix, module: str, suffix: str = "") -> ir.Value:
        """Append the operator under the name of the node that it stands for, as ``quantize`` names it too."""
        name = f"{module}/MatMul{suffix}"
        return nbits.matmul_nbits(self.builder, activation, matrix, name, stored=f"{module}{suffix}")

    def _in_order(self, activation: ir.Value, permutation: np.ndarray, module: str) -> ir.Value:
        """Return an activation with its channels in another order, the same one for all layers that want that."""
        key = (activation.name, permutation.tobytes())
        if key not in self._ordered:
            order = self.builder.constant(f"{module}.order", permutation.astype(np.int64))
            self._ordered[key] = self.builder.op("Gather", [activation, order], module=module, attributes={"axis": -1})
            self._ordered[key].shape = activation.shape
        return self._ordered[key]
