"""Measures the peak memory of building and of running a component.

Export records its own peak. Quantize, if any graph is quantized, runs a second time in a process whose peak is read at
its end, and its output is compared with the artifact: this detects a wrong byte of a quantized weight that no distance
metric would show. Composing records the peaks of both, and ``validate rebuild`` composes a second time.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from omni import build_memory, resources
from omni.component import COMPOSED_OF
from omni.params import MeasuredParams
from omni.reports import BuildMemory, MemoryReport, SessionMemory
from omni.segments import fits, weight_bytes
from omni.stored import load_graph
from omni.streamed import data_file, initializers
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.contract import GraphContract
from validate.measured import MeasuredComponent
from validate.rebuild import rebuild

__all__ = ["describe_inputs", "measure"]


def measure(measured: MeasuredComponent, params: MeasuredParams, threads: int) -> MemoryReport:
    """Measure peaks of export, quantize and a session of each graph, and whether quantize is reproducible.

    Of a graph that is too large to be opened whole, no session is measured.

    Args:
        measured: The component.
        params: The component's block, with the lengths that the sessions run.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.

    Raises:
        UserError: Export recorded no memory, or that of another artifact; a process failed or was killed.
    """
    build = {"export": build_memory.read(measured.name, "export", measured.folders["onnx"])}
    sessions: dict[str, dict[str, SessionMemory]] = {}
    runs = [
        (graph, kind, path) for graph in measured.graphs.values() for kind, path in graph.files.items() if fits(path)
    ]
    with (
        resources.progress("memory", 1 + len(runs)) as advance,
        ThreadPoolExecutor() as processes,  # most of their time goes to imports, on one core each
    ):
        alone = processes.submit(resources.measure_module, "validate.imports", "numpy", "onnxruntime")
        if measured.name in COMPOSED_OF:
            build["quantize"] = build_memory.read(measured.name, "quantize", measured.folders["quantized"])
        elif QUANTIZED in measured.kinds:
            libraries = processes.submit(resources.measure_module, "validate.imports", "quantize.__main__")
            peak, different = rebuild("quantize", measured)
            build["quantize"] = BuildMemory(libraries.result(), peak, not different)
        advance(1)
        for graph, kind, path in runs:  # one by one: a graph may fill the memory
            length = params.graph(graph.stem).memory
            described = describe_inputs(graph.contract, length)
            peak = resources.measure_module("validate.loaded", str(path), str(threads), described)
            data = max(data_file(path).stat().st_size, weight_bytes(path))
            found = SessionMemory(length, alone.result(), peak, data)
            sessions.setdefault(graph.stem, {})[kind] = found
            advance(1)
    return MemoryReport(
        component=measured.name,
        artifacts=measured.fingerprints(),
        largest_tensor_bytes=max(_largest_tensor(path) for path in measured.files(FLOAT).values()),
        build=build,
        graphs=sessions,
    )


def describe_inputs(contract: GraphContract, length: int) -> str:
    """Return a description of a graph's inputs for ``validate.loaded``, which allocates them itself."""
    sizes = contract.sizes(1, length)
    integers = {port.name: contract.integer(port, length) for port in contract.inputs if port.dtype != "FLOAT"}
    return json.dumps({port.name: [port.sized(sizes), integers.get(port.name)] for port in contract.inputs})


def _largest_tensor(path: Path) -> int:
    return max(value.const_value.nbytes for value in initializers(load_graph(path)))
