"""The ceiling by which latency is judged: the speed-up that a machine's own quantized kernels could give.

No fixed speed-up fits all machines: ONNX Runtime's INT8 kernels are nine times as fast as its float32 ones on one
processor, and slower on another. So every multiplication that the scheme quantizes is timed alone, once as in the
float32 graph and once with the fastest operator that the scheme allows. The quantization of activations and the
rescaling of results are timed as well: their share of the time grows with the speed of a processor's kernels, so that
no limit would fit all machines without them. Only the block size of the weights is read from the quantized graph: a
badly quantized graph cannot lower its own ceiling.
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

from omni.stored import load_graph
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import node_events, open_session, profile, run
from validate.bare import BITS, Kernel, bare_graph, random_values
from validate.measured import MeasuredGraph

__all__ = ["BareKernels", "kernels"]


def kernels(graph: MeasuredGraph, length: int) -> Counter[Kernel]:
    """Count the multiplications that the scheme quantizes, and the quantizations of activations, in a run at a length.

    The float32 graph runs once, unoptimized, and ONNX Runtime's profiler reports the shape of each node's activation,
    for nodes in bodies of loops once per iteration.

    Raises:
        UserError: The quantized graph has no MatMulNBits where its manifest records one.
    """
    record: dict[str, str] = {}
    for name, entry in graph.quantization.items():
        if entry["scheme"] != "float32":  # of a node's parts with schemes of their own, the first is the largest
            record.setdefault(_whole(name), entry["scheme"])
    nodes = {str(node.name): node for node in load_graph(graph.files[FLOAT]).graph.all_nodes() if node.name in record}
    blocks = _block_sizes(graph.files[QUANTIZED])
    counts: Counter[Kernel] = Counter()
    quantizing: dict[tuple[ir.Value | None, str], str] = {}  # first node that reads each activation
    for name, activation in _activations(graph, length):
        if name not in nodes:
            continue
        node, scheme = nodes[name], record[name]
        if scheme in BITS and name not in blocks:
            raise UserError(f"{graph.files[QUANTIZED].name}: {name} is no MatMulNBits, which {scheme} asks for")
        block = blocks[name] if scheme in BITS else 0
        weight = node.inputs[1].const_value
        attributes = tuple(sorted((key, _plain(value.value)) for key, value in node.attributes.items()))
        counts[Kernel(node.op_type, scheme, activation, _shape(weight), attributes, block, weight)] += 1
        if scheme not in BITS and quantizing.setdefault((node.inputs[0], scheme), name) == name:
            counts[Kernel("QuantizeLinear", scheme, activation, (), (), 0, None)] += 1
    return counts


class BareKernels:
    """A session that runs each of the given multiplications once per run; a context manager.

    ONNX Runtime's profiler times the nodes, without the overhead of a run. All weights come from memory in turn, as in
    a graph: one multiplication that runs repeatedly would find its weight in the caches.
    """

    def __init__(self, counts: Mapping[Kernel, int], kind: str, threads: int, provider: str) -> None:
        """Open the session; ``kind`` is ``FLOAT`` or ``QUANTIZED``."""
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
        """Return the time of all multiplications of the graph in each of the last runs, [runs]; end the session."""
        times: dict[str, list[float]] = {}
        for event in node_events(profile(self._session)):
            times.setdefault(event["name"], []).append(event["dur"] / 1e6)
        total = np.zeros(runs)
        for name, own in times.items():
            if match := re.match(r"kernel(\d+)(?:_|$)", name):  # other nodes reorder data, as they do in the graphs
                total += self._counts[int(match[1])] * np.array(own[-runs:])
        return total


def _activations(graph: MeasuredGraph, length: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and first input's shape of a float32 graph's nodes, once for each time that they run at a length."""
    with tempfile.TemporaryDirectory() as folder:
        # Optimization would rename nodes, and a single run does not need prepacked weights.
        session = graph.open(
            FLOAT,
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
    """Return each MatMulNBits' block size by name; where several replace one node, by that node's name as well."""
    nodes = (node for node in ir.load(graph).graph.all_nodes() if node.op_type == "MatMulNBits")
    sizes = {str(node.name): node.attributes["block_size"].as_int() for node in nodes}
    return {_whole(name): size for name, size in sizes.items()} | sizes


def _whole(name: str) -> str:
    """Return the name of the float32 graph's node that a node is a part of, or that it stands for."""
    node, part, _ = name.rpartition("/MatMul.")
    return f"{node}/MatMul" if part else name


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape.numpy())
