"""Graphs that consist of a component's multiplications alone, in float32 or in the quantized form of each scheme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from omni import nbits
from omni.imported import IMPORT
from omni.streamed import WidenedTensor
from qwen_omni_onnx.common.agreement import QUANTIZED

__all__ = ["BITS", "Kernel", "bare_graph", "random_values"]

BITS = {"int8-block": 8, "int4-block": 4, IMPORT: 4}
_CONTRIB = "com.microsoft"
_SCALE, _ZERO_POINT = np.float32(0.01), np.uint8(128)


@dataclass(frozen=True)
class Kernel:
    """A multiplication; nodes that are equal in these attributes count as the same one, and take the same time.

    Attributes:
        operator: MatMul or Conv; or QuantizeLinear, which quantizes an activation once for all nodes that read it.
        scheme: The scheme that quantizes it.
        activation: Shape of its activation.
        weight: Shape of its constant weight: [in, out], [out, in, ...] for a convolution, or () without a weight.
        attributes: Attributes of a convolution, sorted.
        block: Number of weights that share a scale in the block schemes; 0 in the others.
        tensor: Weight of one of the nodes.
    """

    operator: str
    scheme: str
    activation: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    block: int
    tensor: ir.TensorProtocol | None = field(compare=False, repr=False)


def bare_graph(multiplications: Iterable[Kernel], kind: str) -> tuple[onnx.ModelProto, Path | None]:
    """Return a graph of multiplications alone, each with an input of its own, and the folder of its external data.

    In float32, weights refer to the float32 graph's external data; quantized weights are random.
    """
    graph = onnx.GraphProto(name="bare_kernels")
    folder = None
    for index, kernel in enumerate(multiplications):
        name = f"kernel{index}"  # optimizers keep this prefix of a node's or output's name
        if kind == QUANTIZED:
            _add_quantized(graph, kernel, name)
        elif kernel.tensor is not None:
            _add_float32(graph, kernel, name)
            tensor = _stored(kernel.tensor)
            folder = Path(tensor.base_dir) if isinstance(tensor, ir.ExternalTensor) else folder
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), folder


def _add_float32(graph: onnx.GraphProto, kernel: Kernel, name: str) -> None:
    """Add a multiplication as the float32 graph has it, with that graph's weight."""
    assert kernel.tensor is not None, "every multiplication has a weight"
    weight = initializer = f"{name}.weight"
    stored = _stored(kernel.tensor)
    if stored is not kernel.tensor:
        initializer = f"{name}.stored"
        _add_node(graph, "Cast", [initializer], weight, to=TensorProto.FLOAT)
    _add_node(graph, kernel.operator, [f"{name}.activation", weight], name, **dict(kernel.attributes))
    _add_ports(graph, kernel, name, TensorProto.FLOAT, name, TensorProto.FLOAT)
    if not isinstance(stored, ir.ExternalTensor):
        graph.initializer.append(numpy_helper.from_array(stored.numpy(), initializer))
        return
    tensor = graph.initializer.add(name=initializer, data_type=int(stored.dtype), dims=kernel.weight)
    tensor.data_location = TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        tensor.external_data.add(key=key, value=str(getattr(stored, key)))


def _stored(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a weight as the float32 graph stores it."""
    return tensor.stored if isinstance(tensor, WidenedTensor) else tensor


def _add_quantized(graph: onnx.GraphProto, kernel: Kernel, name: str) -> None:
    """Add the fastest operator of a scheme, with a random weight, and the rescaling that follows it."""
    if kernel.operator == "QuantizeLinear":
        add = _add_per_token if kernel.scheme == "int8-token" else _add_levels
    else:
        add = _add_convolution if kernel.operator == "Conv" else _add_blocks if kernel.scheme in BITS else _add_columns
    add(graph, kernel, name)


def _add_per_token(graph: onnx.GraphProto, kernel: Kernel, name: str) -> None:
    """Add nodes that quantize an activation with a scale for each token: absmax / 127."""
    values: dict[str, Any] = {
        "axis": np.array([-1]),
        "tiny": np.float32(1e-9),
        "levels": np.float32(127),
        "one": np.float32(1),
    }
    stored = _store(graph, name, {**values, "zero_point": _ZERO_POINT})
    activation = f"{name}.activation"
    _add_node(graph, "Abs", [activation], f"{name}_abs")
    _add_node(graph, "ReduceMax", [f"{name}_abs", stored["axis"]], f"{name}_absmax", keepdims=1)
    _add_node(graph, "Max", [f"{name}_absmax", stored["tiny"]], f"{name}_range")
    _add_node(graph, "Div", [stored["levels"], f"{name}_range"], f"{name}_factor")
    _add_node(graph, "Mul", [activation, f"{name}_factor"], f"{name}_scaled")
    _add_node(graph, "QuantizeLinear", [f"{name}_scaled", stored["one"], stored["zero_point"]], name)
    _add_ports(graph, kernel, name, TensorProto.FLOAT, name, TensorProto.UINT8)


def _add_levels(graph: onnx.GraphProto, kernel: Kernel, name: str) -> None:
    """Add a node that quantizes an activation with one constant scale; a dynamic one would take another pass."""
    stored = _store(graph, name, {"scale": _SCALE, "zero_point": _ZERO_POINT})
    _add_node(graph, "QuantizeLinear", [f"{name}.activation", stored["scale"], stored["zero_point"]], name)
    _add_ports(graph, kernel, name, TensorProto.FLOAT, name, TensorProto.UINT8)


def _add_columns(graph: onnx.GraphProto, kernel: Kernel, name: str) -> None:
    """Add a MatMul of UINT8 activations with zero point 128 and symmetric INT8 weights, ONNX Runtime's fastest."""
    columns = np.full(kernel.weight[1], _SCALE)
    values: dict[str, Any] = {
        "weight": random_values(kernel.weight, np.dtype(np.int8)),
        "scale": _SCALE,
        "columns": columns,
    }
    stored = _store(graph, name, {**values, "zero_point": _ZERO_POINT})
    _add_node(graph, "MatMulIntegerToFloat", [f"{name}.activation", *stored.values()], name, domain=_CONTRIB)
    result = name
    if kernel.scheme == "int8-token":
        scales = _store(graph, name, {"tokens": np.full((*kernel.activation[:-1], 1), _SCALE)})
        result = f"{name}_rescaled"
        _add_node(graph, "Mul", [name, scales["tokens"]], result)
    _add_ports(graph, kernel, name, TensorProto.UINT8, result, TensorProto.FLOAT)


def _add_blocks(graph: onnx.GraphProto, kernel: Kernel, name: str) -> None:
    """Add a MatMulNBits, which quantizes its activation itself; imported weights have zero points."""
    (into, out), bits = kernel.weight, BITS[kernel.scheme]
    blocks = -(-into // kernel.block)
    weight = random_values((out, blocks, kernel.block * bits // 8), np.dtype(np.uint8))
    values = {"weight": weight, "scale": np.full((out, blocks), _SCALE)}
    if kernel.scheme == IMPORT:
        values["zero_point"] = random_values((out, -(-blocks // 2)), np.dtype(np.uint8))
    stored = _store(graph, name, values)
    attributes = nbits.attributes(into, out, kernel.block, bits)
    _add_node(graph, "MatMulNBits", [f"{name}.activation", *stored.values()], name, domain=_CONTRIB, **attributes)
    _add_ports(graph, kernel, name, TensorProto.FLOAT, name, TensorProto.FLOAT)


def _add_convolution(graph: onnx.GraphProto, kernel: Kernel, name: str) -> None:
    """Add a convolution of UINT8 activations and INT8 weights, and the dequantization of its UINT8 result."""
    channels = kernel.weight[0]
    values: dict[str, Any] = {
        "weight": random_values(kernel.weight, np.dtype(np.int8)),
        "weight_scale": np.full(channels, _SCALE),
        "weight_zero_point": np.int8(0),
        "bias": np.zeros(channels, np.int32),
    }
    weight, weight_scale, weight_zero, bias = _store(graph, name, values).values()
    levels = list(_store(graph, name, {"scale": _SCALE, "zero_point": _ZERO_POINT}).values())
    inputs = [f"{name}.activation", *levels, weight, weight_scale, weight_zero, *levels, bias]
    _add_node(graph, "QLinearConv", inputs, name, **dict(kernel.attributes))
    _add_node(graph, "DequantizeLinear", [name, *levels], f"{name}_float32")
    _add_ports(graph, kernel, name, TensorProto.UINT8, f"{name}_float32", TensorProto.FLOAT)


def _add_node(graph: onnx.GraphProto, operator: str, inputs: list[str], name: str, **attributes: Any) -> None:
    graph.node.append(helper.make_node(operator, inputs, [name], name=name, **attributes))


def _add_ports(graph: onnx.GraphProto, kernel: Kernel, name: str, takes: int, result: str, makes: int) -> None:
    graph.input.append(helper.make_tensor_value_info(f"{name}.activation", takes, kernel.activation))
    graph.output.append(helper.make_tensor_value_info(result, makes, None))


def _store(graph: onnx.GraphProto, name: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Add constants; return their names in the graph, in order."""
    stored = {key: f"{name}.{key}" for key in values}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), stored[key]) for key, value in values.items())
    return stored


def random_values(shape: Iterable[int], dtype: np.dtype) -> np.ndarray:
    """Return normally distributed float32 values, or uniformly distributed values of an 8-bit integer type."""
    random, shape = np.random.default_rng(0), tuple(shape)
    if dtype == np.float32:
        return random.standard_normal(shape, np.float32)
    return np.frombuffer(random.bytes(int(np.prod(shape))), dtype).reshape(shape)
