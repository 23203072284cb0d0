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
from omni.hadamard import matrix as hadamard_matrix
from omni.imported import IMPORT, Importer, PackedLayers
from omni.streamed import StreamedTensor
from omni.weight import Weight
from quantize.codes import Codes
from quantize.pack import block_matrix, column_scale, int8_columns
from qwen_omni_onnx.common.errors import UserError

__all__ = ["BITS", "CHANGED", "NEED_CALIBRATION", "OPERATORS", "Rewriter", "bias_of"]

NEED_CALIBRATION = frozenset({"int8-token", "int8-tensor", "int8-static"})
BITS = {"int8-block": 8, "int4-block": 4}  # of a code, in the block schemes
CHANGED = NEED_CALIBRATION | set(BITS)  # schemes that calibration's exact changes of an activation serve
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
        importance: Mean square of each channel of an activation by name, [in], for ``int4-block``.
        importer: Source of packed layers, for ``int4-import``.
        codes: Codes of compensated nodes.
        compensated: Names of these nodes.
        nodes: Number of nodes that took a MatMul's place, where it is not one, by the MatMul's name.
    """

    builder: GraphBuilder
    block: int
    static_range: dict[str, float] = field(default_factory=dict)
    importance: dict[str, np.ndarray] = field(default_factory=dict)
    importer: Importer | None = None
    codes: Codes | None = None
    compensated: set[str] = field(default_factory=set)
    nodes: dict[str, int] = field(default_factory=dict)
    _quantized: dict[tuple[str, str], tuple[ir.Value, ...]] = field(default_factory=dict)
    _ordered: dict[tuple[str, bytes], ir.Value] = field(default_factory=dict)

    def rewrite(self, node: ir.Node, scheme: str, weight: Weight) -> None:
        """Replace ``node`` by its quantized form.

        Args:
            node: MatMul with a constant matrix, its activation already changed.
            scheme: Scheme, a key of ``OPERATORS``.
            weight: Matrix of the MatMul, with the change of the activation in its rows.
        """
        rewrites: dict[str, Callable[[ir.Node, ir.Value, Weight], None]] = {
            "int8-token": self._int8_token,
            "int8-tensor": self._int8_tensor,
            "int8-static": self._int8_static,
            **{name: partial(self._block, bits=bits) for name, bits in BITS.items()},
            IMPORT: self._import,
            "float32": self._float32,
        }
        activation = node.inputs[0]
        assert activation is not None
        rewrites[scheme](node, activation, weight)

    def shift(self, activation: ir.Value, shift: np.ndarray, before: ir.Node) -> ir.Value:
        """Insert a Sub of ``shift`` [channels] before a node; return its output."""
        subtracted = self.builder.constant(f"{activation.name}.shift", shift)
        return self._changed("Sub", [activation, subtracted], f"{activation.name}.shifted", before)

    def smooth(self, activation: ir.Value, factors: np.ndarray, before: ir.Node) -> ir.Value:
        """Insert a Mul by 1 / ``factors`` [channels] before a node; return its output."""
        inverse = self.builder.constant(f"{activation.name}.inverse_factors", (1 / factors).astype(np.float32))
        return self._changed("Mul", [activation, inverse], f"{activation.name}.smoothed", before)

    def rotate(self, activation: ir.Value, run: int, channels: int, before: ir.Node) -> ir.Value:
        """Insert a Hadamard rotation of runs of ``run`` channels before a node; return its output.

        Raises:
            UserError: The activation's rank is not known.
        """
        name = activation.name
        if activation.shape is None:
            raise UserError(f"{before.name}: the graph does not say how many axes {name} has; rotate other nodes")
        axes = [0] * (len(activation.shape) - 1)
        matrix = self.builder.constant(f"quantization.hadamard_{run}", hadamard_matrix(run))
        runs = self.builder.constant(f"{name}.runs", np.array([*axes, -1, run], np.int64))
        channel_axis = self.builder.constant(f"{name}.channels", np.array([*axes, channels], np.int64))
        in_runs = self.builder.op("Reshape", [activation, runs], f"{name}.in_runs", before)
        mixed = self.builder.op("MatMul", [in_runs, matrix], f"{name}.mixed", before)
        return self._changed("Reshape", [mixed, channel_axis], f"{name}.rotated", before, like=activation)

    def _changed(
        self, op_type: str, inputs: list[ir.Value], name: str, before: ir.Node, like: ir.Value | None = None
    ) -> ir.Value:
        """Insert a node whose output has the shape of the first input, or of another value."""
        changed = self.builder.op(op_type, inputs, name, before)
        changed.shape, changed.type = (like or inputs[0]).shape, (like or inputs[0]).type
        return changed

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
        bias, last = bias_of(node)
        inputs = [activation, matrix, columns, None, bias]
        self.builder.replace(last, self._linear("int8-tensor", inputs, node), also=node)

    def _int8_static(self, node: ir.Node, activation: ir.Value, weight: Weight) -> None:
        """Quantize activations with one scale, from calibration; the operator adds the bias."""
        quantized, scale, zero_point = self._static(activation, node)
        matrix, columns = self._int8_columns(node, weight)
        bias, last = bias_of(node)
        inputs = [quantized, matrix, scale, columns, zero_point, None, bias]
        self.builder.replace(last, self._linear("int8-static", inputs, node), also=node)

    def _block(self, node: ir.Node, activation: ir.Value, weight: Weight, bits: int) -> None:
        """Store a scale for every ``block`` inputs of an output; the operator quantizes activations."""
        name, (inputs, outputs) = str(node.name), weight.shape
        if name in self.compensated:
            assert self.codes is not None
            matrix = self.codes.matrix(name, (outputs, inputs), self.block, bits)
        else:
            matrix = block_matrix(weight, self.block, bits, self.importance.get(str(activation.name)))
        self.builder.replace(node, self._matmul_nbits(node, activation, matrix))

    def _import(self, node: ir.Node, activation: ir.Value, weight: Weight) -> None:
        """Take over the source's own 4-bit codes, in its own groups; the operator quantizes activations.

        Raises:
            UserError: The source does not hold the matrix so, or smoothing has changed it.
        """
        name = str(node.name)
        if self.importer is None:
            raise UserError(f"{name}: {IMPORT} needs the checkpoint, which python -m quantize reads of a decoder alone")
        if weight.changed:
            raise UserError(
                f"{name}: smoothing for a neighbour would change its weights, which {IMPORT} takes as they are; give "
                "the neighbour smoothing: none under calibrate.nodes, or calibrate nothing: calibrate: {}"
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
        if not weight.changed:
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
            keep = {"keepdims": 1}  # two reductions: an Abs would write the whole activation
            high = self.builder.op("ReduceMax", [activation, axis], f"{name}.high", before, attributes=keep)
            low = self.builder.op("ReduceMin", [activation, axis], f"{name}.low", before, attributes=keep)
            magnitude = self.builder.op("Neg", [low], f"{name}.negated_low", before)
            largest = self.builder.op("Max", [high, magnitude, eps], f"{name}.token_range", before)
            factor = self.builder.op("Div", [levels, largest], f"{name}.token_factor", before)
            scaled = self.builder.op("Mul", [activation, factor], f"{name}.scaled", before)
            one, zero_point = self._shared("one", np.float32(1)), self._shared("zero_point", np.uint8(128))
            quantized = self.builder.op("QuantizeLinear", [scaled, one, zero_point], f"{name}.uint8", before)
            step = self._shared("step", np.float32(1 / 127))
            self._quantized[key] = (quantized, self.builder.op("Mul", [largest, step], f"{name}.token_scale", before))
        return self._quantized[key]

    def _static(self, activation: ir.Value, before: ir.Node) -> tuple[ir.Value, ...]:
        """Return UINT8 values [..., in], their scale and zero point.

        Raises:
            UserError: Calibration measured no static ranges.
        """
        if activation.name not in self.static_range:
            raise UserError(f"{before.name}: int8-static needs static ranges; give calibrate a headroom")
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
        scale, name = column_scale(weight), str(node.name)
        codes = self.codes if name in self.compensated else None
        streamed = StreamedTensor(
            f"{name}.weight_int8",
            ir.DataType.INT8,
            weight.shape,
            lambda: int8_columns(weight, scale) if codes is None else codes.columns(name),
        )
        return self.builder.initializer(streamed), self.builder.constant(f"{node.name}.weight_scale", scale)

    def _linear(self, scheme: str, inputs: list[ir.Value | None], node: ir.Node) -> ir.Value:
        while inputs[-1] is None:
            inputs = inputs[:-1]
        return self.builder.op(
            OPERATORS[scheme], inputs, f"{node.name}.product", node, domain=CONTRIB, node_name=node.name
        )


def bias_of(node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """Return the bias that is added right after a MatMul, and the node to replace: the Add, or the MatMul itself."""
    (output,) = node.outputs
    (use, *more) = output.uses() or [None]
    add = use.node if use is not None and not more and not output.is_graph_output() else None
    if add is None or add.op_type != "Add" or add.domain:
        return None, node
    bias = next(value for value in add.inputs if value is not output)
    constant = bias.const_value is not None and bias.const_value.shape.numpy() == (node.inputs[1].shape[-1],)
    return (bias, add) if constant else (None, node)
