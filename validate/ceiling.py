"""What a machine's own quantized kernels could make of a float32 graph: the ceiling that latency is judged by.

No other machine says how fast a quantized graph has to be: ONNX Runtime's INT8 kernels are nine times as fast as its
float32 ones on one processor, and slower on another. So every multiplication that was to be quantized runs alone, on
ready activations, once as the float32 graph has it and once by the fastest operator that its scheme allows. Nothing is
taken from how the quantized graph looks but the block size of its weights: a spoiled graph cannot lower its ceiling.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from omni import nbits
from omni.errors import Problem
from omni.session import open_session, run
from validate.subject import FLOAT, QUANTIZED, Subject

__all__ = ["BareKernels", "Kernel", "bare_graph", "kernels"]

_EVENT = "_kernel_time"  # ends the name of the profiler's event about a node's computation
_CONTRIB = "com.microsoft"
_BITS = {"int8-block": 8, "int4-block": 4}
_SCALE, _ZERO_POINT = np.float32(0.01), np.uint8(128)


@dataclass(frozen=True)
class Kernel:
    """A multiplication: all nodes that are alike in this are one, and take the same time.

    Attributes:
        operator: MatMul or Conv.
        scheme: The scheme that quantizes it.
        activation: Shape of its activation.
        weight: Shape of its constant weight: [in, out], or [out, in, ...] of a convolution.
        attributes: Those of a convolution, sorted.
        block: Weights that share a scale in the block schemes; 0 in the others.
        tensor: The weight of one of the nodes.
    """

    operator: str
    scheme: str
    activation: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    block: int
    tensor: ir.TensorProtocol = field(compare=False, repr=False)


def kernels(subject: Subject, length: int) -> Counter[Kernel]:
    """Return each multiplication that was to be quantized, and how often it runs at a length.

    The float32 graph runs once, as it was written, and ONNX Runtime's profiler tells each node's activation: in bodies
    of loops as well, once for each time around.

    Raises:
        Problem: The quantized graph has no MatMulNBits where the record says that there is one.
    """
    record = {name: entry["scheme"] for name, entry in subject.quantization.items() if entry["scheme"] != "float32"}
    nodes = {str(node.name): node for node in ir.load(subject.graphs[FLOAT]).graph.all_nodes() if node.name in record}
    blocks = _block_sizes(subject.graphs[QUANTIZED])
    found: Counter[Kernel] = Counter()
    for name, activation in _activations(subject, length):
        if name not in nodes:
            continue
        node, scheme = nodes[name], record[name]
        if scheme in _BITS and name not in blocks:
            raise Problem(f"{subject.graphs[QUANTIZED].name}: {name} is no MatMulNBits, which {scheme} asks for")
        block = blocks[name] if scheme in _BITS else 0
        weight = node.inputs[1].const_value
        attributes = tuple(sorted((key, _plain(value.value)) for key, value in node.attributes.items()))
        found[Kernel(node.op_type, scheme, activation, _shape(weight), attributes, block, weight)] += 1
    return found


class BareKernels:
    """A session that runs each of some multiplications once, and nothing else.

    ONNX Runtime's profiler times them: a run's own cost is not counted, and all weights come from memory in turn, as in
    a graph; one multiplication run over and over would find its own in the caches. Use it in a ``with`` statement.
    """

    def __init__(self, counts: Mapping[Kernel, int], kind: str, threads: int, provider: str) -> None:
        """Open the session; ``kind`` is FLOAT or QUANTIZED."""
        self._counts = list(counts.values())
        self._folder = tempfile.TemporaryDirectory()
        model, data_folder = bare_graph(counts, kind)
        self._session = open_session(
            model.SerializeToString(),
            threads=threads,
            provider=provider,
            take_turns=True,
            data_folder=data_folder,
            profiled_to=Path(self._folder.name) / "profile",
        )
        self._fed = {
            port.name: _random(port.shape, np.dtype(np.float32 if port.type == "tensor(float)" else np.uint8))
            for port in self._session.get_inputs()
        }

    def __enter__(self) -> BareKernels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def run(self) -> None:
        """Run each multiplication once."""
        self._session.run(None, self._fed)

    def seconds(self, runs: int) -> np.ndarray:
        """Return what all multiplications of the graph took in each of the last runs, [runs]. It can run no more."""
        times: list[list[float]] = [[] for _ in self._counts]
        for event in _events(Path(self._session.end_profiling())):
            if match := re.match(r"kernel(\d+)_", event["name"]):
                times[int(match[1])].append(event["dur"] / 1e6)
        return np.array(self._counts) @ np.array([own[-runs:] for own in times])


def bare_graph(some: Iterable[Kernel], kind: str) -> tuple[onnx.ModelProto, Path | None]:
    """Return a graph of nothing but multiplications, each on an input of its own, and the folder of its external data.

    Its weights are the float32 graph's own, which stay where they are, or random ones of the quantized kind.
    """
    nodes, constants, inputs, outputs = [], [], [], []
    folder = None
    for index, kernel in enumerate(some):
        taken, made = (
            f"activation{index}",
            f"kernel{index}",
        )  # optimizers keep the beginning of a node's or output's name
        if kind == FLOAT:
            node, values = _float32(kernel, taken, made)
            dtype = made_dtype = TensorProto.FLOAT
            external = isinstance(kernel.tensor, ir.ExternalTensor)
            folder = Path(kernel.tensor.base_dir) if external else folder
        else:
            node, values = _quantized(kernel, taken, made)
            dtype = TensorProto.FLOAT if kernel.scheme in _BITS else TensorProto.UINT8
            made_dtype = TensorProto.UINT8 if kernel.operator == "Conv" else TensorProto.FLOAT
        nodes.append(node)
        constants += values
        inputs.append(helper.make_tensor_value_info(taken, dtype, kernel.activation))
        outputs.append(helper.make_tensor_value_info(made, made_dtype, None))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_CONTRIB, 1)]
    graph = helper.make_graph(nodes, "bare_kernels", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), folder


def _float32(kernel: Kernel, taken: str, made: str) -> tuple[onnx.NodeProto, list[TensorProto]]:
    weight = f"{made}.weight"
    node = helper.make_node(kernel.operator, [taken, weight], [made], name=made, **dict(kernel.attributes))
    if not isinstance(kernel.tensor, ir.ExternalTensor):
        return node, [numpy_helper.from_array(kernel.tensor.numpy(), weight)]
    tensor = TensorProto(name=weight, data_type=TensorProto.FLOAT, dims=kernel.weight)
    tensor.data_location = TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        tensor.external_data.add(key=key, value=str(getattr(kernel.tensor, key)))
    return node, [tensor]


def _quantized(kernel: Kernel, taken: str, made: str) -> tuple[onnx.NodeProto, list[TensorProto]]:
    """Return the fastest operator for a scheme, with weights of its own."""
    make = _convolution if kernel.operator == "Conv" else _blocks if kernel.scheme in _BITS else _columns
    operator, names, values, attributes, domain = make(kernel)
    stored = {name: f"{made}.{name}" for name in values}
    node = helper.make_node(
        operator, [taken, *(stored[name] for name in names)], [made], name=made, domain=domain, **attributes
    )
    return node, [numpy_helper.from_array(np.asarray(value), stored[name]) for name, value in values.items()]


_Made = tuple[str, list[str], dict[str, Any], dict[str, Any], str]


def _columns(kernel: Kernel) -> _Made:
    """UINT8 activations with zero point 128, INT8 weights without one: what ONNX Runtime's fast kernels take."""
    values = {
        "weight": _random(kernel.weight, np.dtype(np.int8)),
        "scale": _SCALE,
        "weight_scale": np.full(kernel.weight[1], _SCALE),
        "zero_point": _ZERO_POINT,
    }
    return "MatMulIntegerToFloat", ["weight", "scale", "weight_scale", "zero_point"], values, {}, _CONTRIB


def _blocks(kernel: Kernel) -> _Made:
    into, out = kernel.weight
    bits, blocks = _BITS[kernel.scheme], -(-into // kernel.block)
    values = {
        "weight": _random((out, blocks, kernel.block * bits // 8), np.dtype(np.uint8)),
        "scale": np.full((out, blocks), _SCALE),
    }
    return "MatMulNBits", ["weight", "scale"], values, nbits.attributes(into, out, kernel.block, bits), _CONTRIB


def _convolution(kernel: Kernel) -> _Made:
    channels = kernel.weight[0]
    values = {
        "scale": _SCALE,
        "zero_point": _ZERO_POINT,
        "weight": _random(kernel.weight, np.dtype(np.int8)),
        "weight_scale": np.full(channels, _SCALE),
        "weight_zero_point": np.int8(0),
        "bias": np.zeros(channels, np.int32),
    }
    levels = ["scale", "zero_point"]
    names = [*levels, "weight", "weight_scale", "weight_zero_point", *levels, "bias"]
    return "QLinearConv", names, values, dict(kernel.attributes), ""


def _activations(subject: Subject, length: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and first input's shape of each node of the float32 graph, as often as it runs at a length."""
    with tempfile.TemporaryDirectory() as folder:
        # optimized, nodes would have other names; and what runs once need not be packed for speed
        session = open_session(
            subject.graphs[FLOAT],
            optimization="disabled",
            profiled_to=Path(folder) / "profile",
            prepack=False,
            lean=True,
        )
        run(session, subject.feed(length))
        events = _events(Path(session.end_profiling()))
    for event in events:
        shapes = event["args"].get("input_type_shape")
        if shapes:
            yield event["name"].removesuffix(_EVENT), tuple(next(iter(shapes[0].values())))


def _events(profile: Path) -> list[dict[str, Any]]:
    found = json.loads(profile.read_text())
    return [event for event in found if event.get("cat") == "Node" and event["name"].endswith(_EVENT)]


def _block_sizes(graph: Path) -> dict[str, int]:
    nodes = (node for node in ir.load(graph).graph.all_nodes() if node.op_type == "MatMulNBits")
    return {str(node.name): node.attributes["block_size"].as_int() for node in nodes}


def _random(shape: Iterable[int], dtype: np.dtype) -> np.ndarray:
    random, shape = np.random.default_rng(0), tuple(shape)
    if dtype == np.float32:
        return random.standard_normal(shape, np.float32)
    return np.frombuffer(random.bytes(int(np.prod(shape))), dtype).reshape(shape)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape.numpy())
