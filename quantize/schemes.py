"""The quantization schemes: the nodes that replace one MatMul, and the layout of its matrix.

Measured choices behind the operators: activations UINT8 with zero point 128 and weights INT8 without a zero point are
what ONNX Runtime's fast CPU kernels take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from omni import nbits
from omni.graph_builder import CONTRIB, GraphBuilder
from omni.imported import IMPORT, Importer, PackedLayers
from omni.streamed import StreamedTensor
from omni.weight import Weight
from quantize.pack import block_scales, block_values, column_scale, int8_columns
from qwen_omni_onnx.common.errors import UserError

__all__ = ["OPERATORS", "SMOOTHED", "Rewriter"]

SMOOTHED = frozenset({"int8-token", "int8-tensor", "int8-static"})
OPERATORS = {  # that each scheme has in the graph
    "int8-token": "MatMulIntegerToFloat",
    "int8-tensor": "DynamicQuantizeMatMul",
    "int8-static": "MatMulIntegerToFloat",
    "int8-block": "MatMulNBits",
    "int4-block": "MatMulNBits",
    IMPORT: "MatMulNBits",
    "float32": "MatMul",
}


@dataclass
class Rewriter:
    """Rewrites MatMuls of one graph, sharing constants and quantized activations between them.

    Attributes:
        builder: Changes the graph that holds them.
        block: Inputs that share a scale, in the block schemes.
        static_range: Range of each activation by name, for ``int8-static``.
        importer: Source of packed layers, for ``int4-import``.
        nodes: Number of nodes that took a MatMul's place, where it is not one, by the MatMul's name.
    """

    builder: GraphBuilder
    block: int
    static_range: dict[str, float] = field(default_factory=dict)
    importer: Importer | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    _quantized: dict[tuple[str, str], tuple[ir.Value, ...]] = field(default_factory=dict)
    _ordered: dict[tuple[str, bytes], ir.Value] = field(default_factory=dict)

    def rewrite(self, node: ir.Node, scheme: str, weight: Weight) -> None:
        """Replace ``node`` by its quantized form.

        Args:
            node: MatMul with a constant matrix, its activation already smoothed where the scheme smooths.
            scheme: Scheme, a key of ``OPERATORS``.
            weight: Matrix of the MatMul, with the smoothing in its rows.
        """
        rewrites: dict[str, Callable[[ir.Node, ir.Value, Weight], None]] = {
            "int8-token": self._int8_token,
            "int8-tensor": self._int8_tensor,
            "int8-static": self._int8_static,
            "int8-block": partial(self._block, bits=8),
            "int4-block": partial(self._block, bits=4),
            IMPORT: self._import,
            "float32": self._float32,
        }
        activation = node.inputs[0]
        assert activation is not None
        rewrites[scheme](node, activation, weight)

    def smooth(self, activation: ir.Value, factors: np.ndarray, before: ir.Node) -> ir.Value:
        """Insert a Mul by 1 / ``factors`` [channels] before a node; return its output."""
        inverse = self.builder.constant(f"{activation.name}.inverse_factors", (1 / factors).astype(np.float32))
        return self.builder.op("Mul", [activation, inverse], f"{activation.name}.smoothed", before)

    def _int8_token(self, node: ir.Node, activation: ir.Value, weight: Weight) -> None:
        """Quantize activations with a scale a token, found at run time, which multiplies the result."""
        quantized, scale = self._per_token(activation, node)
        matrix, columns = self._int8_columns(node, weight)
        one, zero_point = self._shared("one", np.float32(1)), self._shared("zero_point", np.uint8(128))
        product = self.builder.op(
            OPERATORS["int8-token"],
            [quantized, matrix, one, columns, zero_point],
            f"{node.name}.int32",
            node,
            domain=CONTRIB,
            node_name=node.name,
        )
        self.builder.replace(node, self.builder.op("Mul", [product, scale], f"{node.name}.rescaled", node))

    def _int8_tensor(self, node: ir.Node, activation: ir.Value, weight: Weight) -> None:
        """Quantize activations with one scale and zero point, found at run time; the operator adds the bias."""
        matrix, columns = self._int8_columns(node, weight)
        bias, last = _bias(node)
        inputs = [activation, matrix, columns, None, bias]
        self.builder.replace(last, self._linear("int8-tensor", inputs, node), also=node)

    def _int8_static(self, node: ir.Node, activation: ir.Value, weight: Weight) -> None:
        """Quantize activations with one scale, from calibration; the operator adds the bias."""
        quantized, scale, zero_point = self._static(activation, node)
        matrix, columns = self._int8_columns(node, weight)
        bias, last = _bias(node)
        inputs = [quantized, matrix, scale, columns, zero_point, None, bias]
        self.builder.replace(last, self._linear("int8-static", inputs, node), also=node)

    def _block(self, node: ir.Node, activation: ir.Value, weight: Weight, bits: int) -> None:
        """Store a scale for every ``block`` inputs of an output; the operator quantizes activations."""
        inputs, outputs = weight.shape
        matrix = nbits.BlockMatrix(
            (outputs, inputs),
            self.block,
            bits,
            lambda: block_values(weight, self.block, bits),
            lambda: block_scales(weight, self.block, bits),
        )
        self.builder.replace(node, self._matmul_nbits(node, activation, matrix))

    def _import(self, node: ir.Node, activation: ir.Value, weight: Weight) -> None:
        """Take over the source's own 4-bit codes, in its own groups; the operator quantizes activations.

        Raises:
            UserError: The source does not hold the matrix so, or smoothing has changed it.
        """
        name = str(node.name)
        if self.importer is None:
            raise UserError(f"{name}: {IMPORT} needs the checkpoint, which python -m quantize reads of a decoder alone")
        if weight.row_scale is not None or weight.column_scale is not None:
            raise UserError(
                f"{name}: smoothing for a neighbour would change its weights, which {IMPORT} takes as they are; give "
                "the neighbour a scheme without smoothing, such as int8-block, under quantize.nodes"
            )
        layers = self.importer.layers(name, weight.shape[1])
        if len(layers) == 1:
            self.builder.replace(node, self._packed(node, activation, layers[0], ""))
            return
        products = [self._packed(node, activation, layer, f".{layer.leaf}") for layer in layers]
        self.nodes[name] = len(products)
        axis = {"axis": -1}
        whole = self.builder.op("Concat", products, f"{name}.product", node, attributes=axis, node_name=name)
        self.builder.replace(node, whole)

    def _packed(self, node: ir.Node, activation: ir.Value, layer: PackedLayers, suffix: str) -> ir.Value:
        """Insert the operator for packed layers before a node; return its output."""
        if layer.permutation is not None:
            activation = self._in_order(node, activation, layer.permutation, suffix)
        return self._matmul_nbits(node, activation, layer.matrix, suffix)

    def _matmul_nbits(
        self, node: ir.Node, activation: ir.Value, matrix: nbits.BlockMatrix, suffix: str = ""
    ) -> ir.Value:
        name = str(node.name)
        return nbits.matmul_nbits(
            self.builder,
            activation,
            matrix,
            f"{name}.product{suffix}",
            node,
            stored=name,
            suffix=suffix,
            node_name=f"{name}{suffix}",
        )

    def _in_order(self, node: ir.Node, activation: ir.Value, permutation: np.ndarray, suffix: str) -> ir.Value:
        """Return an activation with its channels in another order, the same one for all nodes that want that."""
        key = (str(activation.name), permutation.tobytes())
        if key not in self._ordered:
            order = self.builder.constant(f"{node.name}.order{suffix}", permutation.astype(np.int64))
            attributes = {"axis": -1}
            ordered = self.builder.op(
                "Gather", [activation, order], f"{node.name}.ordered{suffix}", node, attributes=attributes
            )
            self._ordered[key] = ordered
        return self._ordered[key]

    def _float32(self, node: ir.Node, activation: ir.Value, weight: Weight) -> None:
        """Leave a MatMul as it is, but for what smoothing folded into its matrix."""
        if weight.row_scale is None and weight.column_scale is None:
            return
        streamed = StreamedTensor(f"{node.name}.weight", ir.DataType.FLOAT, weight.shape, weight.blocks)
        node.replace_input_with(1, self.builder.initializer(streamed))

    def _per_token(self, activation: ir.Value, before: ir.Node) -> tuple[ir.Value, ...]:
        """Return UINT8 values [..., in] and their row scale [..., 1]: absmax of the token / 127."""
        key = (activation.name, "token")
        if key not in self._quantized:
            name = activation.name
            levels, eps = self._shared("levels", np.float32(127)), self._shared("tiny", np.float32(1e-9))
            axis = self.builder.constant("last_axis", np.array([-1], np.int64))
            magnitude = self.builder.op("Abs", [activation], f"{name}.abs", before)
            keep = {"keepdims": 1}
            largest = self.builder.op("ReduceMax", [magnitude, axis], f"{name}.absmax", before, attributes=keep)
            largest = self.builder.op("Max", [largest, eps], f"{name}.token_range", before)
            factor = self.builder.op("Div", [levels, largest], f"{name}.token_factor", before)
            scaled = self.builder.op("Mul", [activation, factor], f"{name}.scaled", before)
            one, zero_point = self._shared("one", np.float32(1)), self._shared("zero_point", np.uint8(128))
            quantized = self.builder.op("QuantizeLinear", [scaled, one, zero_point], f"{name}.uint8", before)
            step = self._shared("step", np.float32(1 / 127))
            self._quantized[key] = (quantized, self.builder.op("Mul", [largest, step], f"{name}.token_scale", before))
        return self._quantized[key]

    def _static(self, activation: ir.Value, before: ir.Node) -> tuple[ir.Value, ...]:
        """Return UINT8 values [..., in], their scale and zero point."""
        key = (activation.name, "static")
        if key not in self._quantized:
            scale = self.builder.constant(
                f"{activation.name}.scale", np.array(self.static_range[activation.name] / 127, np.float32)
            )
            zero_point = self._shared("zero_point", np.uint8(128))
            quantized = self.builder.op(
                "QuantizeLinear", [activation, scale, zero_point], f"{activation.name}.uint8", before
            )
            self._quantized[key] = (quantized, scale, zero_point)
        return self._quantized[key]

    def _shared(self, name: str, value: np.generic) -> ir.Value:
        """Return a scalar that all quantized nodes of the graph share."""
        return self.builder.constant(f"quantization.{name}", value)

    def _int8_columns(self, node: ir.Node, weight: Weight) -> tuple[ir.Value, ir.Value]:
        """Return INT8 values [in, out] and a scale for each output channel [out]."""
        scale = column_scale(weight)
        streamed = StreamedTensor(
            f"{node.name}.weight_int8", ir.DataType.INT8, weight.shape, lambda: int8_columns(weight, scale)
        )
        return self.builder.initializer(streamed), self.builder.constant(f"{node.name}.weight_scale", scale)

    def _linear(self, scheme: str, inputs: list[ir.Value | None], node: ir.Node) -> ir.Value:
        while inputs[-1] is None:
            inputs = inputs[:-1]
        return self.builder.op(
            OPERATORS[scheme], inputs, f"{node.name}.product", node, domain=CONTRIB, node_name=node.name
        )


def _bias(node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """Return the bias that is added right after a MatMul, and the node to replace: the Add, or the MatMul itself."""
    (output,) = node.outputs
    (use, *more) = output.uses() or [None]
    add = use.node if use is not None and not more and not output.is_graph_output() else None
    if add is None or add.op_type != "Add" or add.domain:
        return None, node
    bias = next(value for value in add.inputs if value is not output)
    constant = bias.const_value is not None and bias.const_value.shape.numpy() == (node.inputs[1].shape[-1],)
    return (bias, add) if constant else (None, node)
