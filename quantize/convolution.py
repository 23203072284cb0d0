"""INT8 convolutions: the nodes that replace one Conv, and the layout of its weight.

Measured choices (ONNX Runtime 1.31, AVX512-VNNI): QLinearConv on UINT8 activations and INT8 weights is 3 to 4 times as
fast as the float32 convolution at 96 to 768 channels. ConvInteger, which would spare the output its quantization, takes
three times as long as float32; so do INT8 activations. A MatMulIntegerToFloat on shifted copies of the input spares it
too and gains 2 dB a convolution, but takes 1.2 times as long as QLinearConv at 768 channels, and twice at 48.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from omni.graph_builder import GraphBuilder
from omni.streamed import StreamedTensor
from omni.weight import Kernel
from quantize.pack import int8_channels
from qwen_omni_onnx.common.errors import UserError

__all__ = ["OPERATOR", "SCHEME", "ConvolutionRewriter", "Span"]

SCHEME, OPERATOR = "int8-static", "QLinearConv"
_STEPS, _LEVELS = 255, 127
_INT32 = 2**31 - 1

Span = tuple[float, float]


@dataclass
class ConvolutionRewriter:
    """Rewrites Convs of one graph; those that read the same activation share its quantization.

    Attributes:
        builder: Changes the graph.
        spans: Range [low, high] of each activation by name, from calibration.
    """

    builder: GraphBuilder
    spans: Mapping[str, Span]
    _quantized: dict[str, ir.Value] = field(default_factory=dict)

    def rewrite(self, node: ir.Node) -> None:
        """Replace a Conv by QuantizeLinear, QLinearConv and DequantizeLinear.

        Raises:
            UserError: Calibration lacks a value that the Conv reads or produces.
        """
        activation, (output,) = node.inputs[0], node.outputs
        assert activation is not None
        name = str(activation.name)
        scale, zero_point = self._levels(name, name)
        if name not in self._quantized:
            levels = [activation, scale, zero_point]
            self._quantized[name] = self.builder.op("QuantizeLinear", levels, f"{name}.levels", node)
        result_levels = self._levels(str(output.name), f"{node.name}.output")
        weight, weight_scale, bias = self._weight(node, float(scale.const_value.numpy()))
        inputs = [
            self._quantized[name],
            scale,
            zero_point,
            weight,
            weight_scale,
            self._zero(node),
            *result_levels,
            *bias,
        ]
        convolved = self.builder.op(
            OPERATOR, inputs, f"{node.name}.levels", node, attributes=node.attributes, node_name=node.name
        )
        self.builder.replace(
            node, self.builder.op("DequantizeLinear", [convolved, *result_levels], f"{node.name}.float32", node)
        )

    def _levels(self, activation: str, stem: str) -> tuple[ir.Value, ir.Value]:
        """Return scale and UINT8 zero point of a value."""
        if activation not in self.spans:
            raise UserError(f"calibration knows nothing of {activation}; run python -m calibrate again")
        low, high = self.spans[activation]
        scale = np.float32((high - low) / _STEPS)
        zero_point = np.uint8(np.clip(np.rint(-low / scale), 0, _STEPS))
        return (
            self.builder.constant(f"{stem}.uint8_scale", np.array(scale)),
            self.builder.constant(f"{stem}.uint8_zero_point", np.array(zero_point)),
        )

    def _zero(self, node: ir.Node) -> ir.Value:
        """Return the zero point of a Conv's weight: without one, ONNX Runtime could not turn it to UINT8.

        It does so where sums saturate, with each node's by itself, and fails where two nodes share one.
        """
        return self.builder.constant(f"{node.name}.weight_zero_point", np.int8(0))

    def _weight(self, node: ir.Node, activation_scale: float) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """Return INT8 weight [out, in, ...], its scale [out], and the INT32 bias [out] if there is one."""
        kernel = Kernel(node.inputs[1].const_value)
        scale = kernel.out_absmax() / _LEVELS
        bias = node.inputs[2].const_value.numpy() if len(node.inputs) > 2 and node.inputs[2] else None
        if bias is not None:  # a channel may be hardly more than its bias, which must fit 32 bits
            scale = np.maximum(scale, np.abs(bias) / (activation_scale * (_INT32 // 2)))
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        streamed = StreamedTensor(
            f"{node.name}.weight_int8", ir.DataType.INT8, kernel.shape, lambda: int8_channels(kernel, scale)
        )
        weight = self.builder.initializer(streamed)
        weight_scale = self.builder.constant(f"{node.name}.weight_scale", scale)
        if bias is None:
            return weight, weight_scale, []
        steps = np.rint(bias / (scale.astype(np.float64) * activation_scale)).astype(np.int32)
        return weight, weight_scale, [self.builder.constant(f"{node.name}.bias_int32", steps)]
