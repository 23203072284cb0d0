"""One linear layer of a decoder, in float32 or quantized: which operator, and how its matrix is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from export.decoder.graph import CONTRIB, Construction
from export.decoder.weights import BlockQuantized, Matrix, vector
from omni import nbits
from omni.imported import IMPORT, PackedLayers, packed_layers
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Linear", "Schemes"]

_BITS = {"int8-block": 8, "int4-block": 4}


@dataclass(frozen=True)
class Schemes:
    """How each matrix is stored.

    Attributes:
        default: ``float32``, ``int8-block``, ``int4-block`` or ``int4-import``.
        block: weights of an output that share a scale; ``int4-import`` has the checkpoint's.
        nodes: other schemes, by pattern of node names: ``{"*.down_proj/*": "int8-block"}``. The first that fits counts.
    """

    default: str = "float32"
    block: int = 32
    nodes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for scheme in (self.default, *self.nodes.values()):
            if scheme not in (known := ("float32", *_BITS, IMPORT)):
                raise UserError(f"scheme {scheme!r}: a decoder is built as one of {', '.join(known)}")

    def of(self, node: str) -> str:
        """Return the scheme of a node."""
        return next((scheme for pattern, scheme in self.nodes.items() if fnmatchcase(node, pattern)), self.default)

    def require_used(self, nodes: Iterable[str]) -> None:
        """Refuse a pattern that no node fits: it is misspelt, and what it should spare is quantized.

        Raises:
            UserError: there is one.
        """
        nodes = list(nodes)
        for pattern in self.nodes:
            if not any(fnmatchcase(node, pattern) for node in nodes):
                raise UserError(f"no node of the graph fits {pattern!r}; there is, for instance, {nodes[0]}")


@dataclass
class Linear:
    """Appends linear layers to a graph.

    Attributes:
        graph: under construction.
        schemes: of the matrices.
        names: of the nodes that multiply by one, so far.
    """

    graph: Construction
    schemes: Schemes
    names: list[str] = field(default_factory=list)
    _ordered: dict[tuple[str | None, bytes], ir.Value] = field(default_factory=dict)

    def __call__(self, activation: ir.Value, matrix: Matrix, module: str, bias: tuple[str, ...] = ()) -> ir.Value:
        """Return ``activation @ matrix.T + bias``, [batch, seq, outputs], or [batch, kept, outputs] of the head.

        Args:
            activation: [batch, seq, inputs], or [batch, kept, inputs]; its shape is noted on it.
            matrix: [outputs, inputs].
            module: names the node.
            bias: tensors of the checkpoint, end to end.
        """
        node = f"{module}/MatMul"
        scheme = self.schemes.of(node)
        self.names.append(node)
        append = {"float32": self._float32, IMPORT: self._import}.get(scheme, self._block)
        product = append(activation, matrix, module, scheme)
        assert activation.shape is not None, f"{module} reads a value without a shape"
        product.shape = ir.Shape([*activation.shape[:-1], matrix.shape[0]])
        if not bias:
            return product
        added = self.graph.streamed(vector(matrix.checkpoint, bias, f"{module}.bias"))
        result = self.graph.op("Add", [product, added], module)
        result.shape = product.shape
        return result

    def in_slices(self, activation: ir.Value, matrix: Matrix, module: str, largest: int) -> ir.Value:
        """The same, in parts of at most ``largest`` values of the matrix, as even as can be.

        A vocabulary's matrix is many times larger than any other, and all of a matrix is in memory while it is
        transposed. In parts, the largest one of a layer sets the peak.
        """
        outputs, inputs = matrix.shape
        count = -(-outputs * inputs // largest)
        if count == 1:
            return self(activation, matrix, module)
        rows = -(-outputs // count)
        (name,) = matrix.names
        parts: list[ir.Value | None] = [
            self(
                activation,
                Matrix(matrix.checkpoint, (name,), slice(start, min(start + rows, outputs))),
                f"{module}.{part}",
            )
            for part, start in enumerate(range(0, outputs, rows))
        ]
        return self.graph.op("Concat", parts, module, attributes={"axis": -1})

    def _float32(self, activation: ir.Value, matrix: Matrix, module: str, scheme: str) -> ir.Value:
        weight = self.graph.streamed(matrix.transposed(f"{module}.weight"))
        return self.graph.op("MatMul", [activation, weight], module)

    def _block(self, activation: ir.Value, matrix: Matrix, module: str, scheme: str) -> ir.Value:
        """A scale for every block of weights of an output; the operator quantizes its activations."""
        outputs, inputs = matrix.shape
        bits, block = _BITS[scheme], self.schemes.block
        stored = BlockQuantized(matrix, block, bits)
        values = self.graph.streamed(stored.values(f"{module}.weight_int{bits}"))
        scales = self.graph.streamed(stored.scales(f"{module}.weight_scale"))
        return self.graph.op(
            "MatMulNBits",
            [activation, values, scales],
            module,
            as_if="MatMul",  # the node that it stands for: quantize names them so as well
            domain=CONTRIB,
            attributes=nbits.attributes(inputs, outputs, block, bits),
        )

    def _import(self, activation: ir.Value, matrix: Matrix, module: str, scheme: str) -> ir.Value:
        """The checkpoint's own 4-bit codes, in its own groups."""
        layers = packed_layers(matrix.checkpoint, matrix.names, f"{module}/MatMul", matrix.shape[0])
        if len(layers) == 1:
            return self._packed(activation, layers[0], module)
        parts: list[ir.Value | None] = [self._packed(activation, layer, f"{module}.{layer.leaf}") for layer in layers]
        return self.graph.op("Concat", parts, module, attributes={"axis": -1})

    def _packed(self, activation: ir.Value, layer: PackedLayers, module: str) -> ir.Value:
        if layer.permutation is not None:
            activation = self._in_order(activation, layer.permutation, module)
        return self.graph.op(
            "MatMulNBits",
            [activation, *(self.graph.streamed(tensor) for tensor in layer.tensors(module))],
            module,
            as_if="MatMul",
            domain=CONTRIB,
            attributes=layer.attributes,
        )

    def _in_order(self, activation: ir.Value, permutation: np.ndarray, module: str) -> ir.Value:
        """Return an activation with its channels in another order, the same one for all layers that want that."""
        key = (activation.name, permutation.tobytes())
        if key not in self._ordered:
            order = self.graph.constant(f"{module}.order", permutation.astype(np.int64))
            self._ordered[key] = self.graph.op("Gather", [activation, order], module, attributes={"axis": -1})
            self._ordered[key].shape = activation.shape
        return self._ordered[key]
