"""What a machine's own quantized kernels could make of a float32 graph: the ceiling that latency is judged by.

No other machine says how fast a quantized graph has to be: ONNX Runtime's INT8 kernels are nine times as fast as its
float32 ones on one processor, and slower on another. So every multiplication that was to be quantized runs alone, once
as the float32 graph has it and once by the fastest operator that its scheme allows. What the scheme does around that
operator, quantizing an activation and rescaling a result, runs alone too: the faster a processor's kernels, the more of
the time that is, so that without it no limit would fit all machines. Nothing is taken from how the quantized graph
looks but the block size of its weights: a spoiled graph cannot lower its ceiling.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir

from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import node_events, open_session, profile, run
from validate.bare import BITS, Kernel, bare_graph, random_values
from validate.measured import MeasuredGraph

__all__ = ["BareKernels", "kernels"]


def kernels(graph: MeasuredGraph, length: int) -> Counter[Kernel]:
    """Return each multiplication that was to be quantized, and its activation, and how often it runs at a length.

    The float32 graph runs once, as it was written, and ONNX Runtime's profiler tells each node's activation: in bodies
    of loops as well, once for each time around.

    Raises:
        UserError: The quantized graph has no MatMulNBits where the record says that there is one.
    """
    record = {name: entry["scheme"] for name, entry in graph.quantization.items() if entry["scheme"] != "float32"}
    nodes = {str(node.name): node for node in ir.load(graph.files[FLOAT]).graph.all_nodes() if node.name in record}
    blocks = _block_sizes(graph.files[QUANTIZED])
    found: Counter[Kernel] = Counter()
    quantizing: dict[tuple[ir.Value | None, str], str] = {}  # the first node that reads an activation
    for name, activation in _activations(graph, length):
        if name not in nodes:
            continue
        node, scheme = nodes[name], record[name]
        if scheme in BITS and name not in blocks:
            raise UserError(f"{graph.files[QUANTIZED].name}: {name} is no MatMulNBits, which {scheme} asks for")
        block = blocks[name] if scheme in BITS else 0
        weight = node.inputs[1].const_value
        attributes = tuple(sorted((key, _plain(value.value)) for key, value in node.attributes.items()))
        found[Kernel(node.op_type, scheme, activation, _shape(weight), attributes, block, weight)] += 1
        if scheme not in BITS and quantizing.setdefault((node.inputs[0], scheme), name) == name:
            found[Kernel("QuantizeLinear", scheme, activation, (), (), 0, None)] += 1
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
            stop_spinning=True,
            data_folder=data_folder,
            profiled_to=Path(self._folder.name) / "profile",
        )
        self._fed = {
            port.name: random_values(port.shape, np.dtype(np.float32 if port.type == "tensor(float)" else np.uint8))
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
        times: dict[str, list[float]] = {}
        for event in node_events(profile(self._session)):
            times.setdefault(event["name"], []).append(event["dur"] / 1e6)
        total = np.zeros(runs)
        for name, own in times.items():
            if match := re.match(r"kernel(\d+)(?:_|$)", name):  # others change the layout, as they do in the graphs
                total += self._counts[int(match[1])] * np.array(own[-runs:])
        return total


def _activations(graph: MeasuredGraph, length: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and first input's shape of each node of the float32 graph, as often as it runs at a length."""
    with tempfile.TemporaryDirectory() as folder:
        # optimized, nodes would have other names; and what runs once need not be packed for speed
        session = open_session(
            graph.files[FLOAT],
            optimization="disabled",
            profiled_to=Path(folder) / "profile",
            prepack=False,
            low_memory=True,
        )
        run(session, graph.feed(length))
        events = profile(session)
    for event in node_events(events):
        shapes = event["args"].get("input_type_shape")
        if shapes:
            yield event["name"], tuple(next(iter(shapes[0].values())))


def _block_sizes(graph: Path) -> dict[str, int]:
    """Return the block size of each MatMulNBits by name; where several stand for one node, by that one's name too."""
    nodes = (node for node in ir.load(graph).graph.all_nodes() if node.op_type == "MatMulNBits")
    sizes = {str(node.name): node.attributes["block_size"].as_int() for node in nodes}
    return {
        name.rpartition("/MatMul.")[0] + "/MatMul": size for name, size in sizes.items() if "/MatMul." in name
    } | sizes


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape.numpy())
