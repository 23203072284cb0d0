"""How much memory do building and running take, and does a second build give the same bytes?

Export and, where there is something to quantize, quantize run again, each in a process of its own whose peak is read at
its end, into a folder that is compared with the artifact and thrown away. A wrong byte that no distance metric would
see turns up here.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir

from omni import artifact
from omni.component import Component
from omni.contract import GraphContract
from omni.params import MeasuredParams
from omni.resources import measure_module, progress
from omni.streamed import data_file
from validate.subject import FLOAT, QUANTIZED, Subject

__all__ = ["describe_inputs", "measure"]

_AT_ONCE = 2
_TRACING = ["export.trace", "export.weights", "onnxscript", "torch.onnx"]


def measure(subject: Subject, params: MeasuredParams, threads: int) -> dict[str, Any]:
    """Return peaks in bytes of export, quantize and a loaded session of each graph, and whether both builds agree.

    Args:
        subject: the component.
        params: its block, which says what lengths the sessions run.
        threads: of the sessions.

    Raises:
        Problem: one of the processes failed or was killed.
    """
    graphs = [
        (f"{stem} {kind}" if subject.parts else kind, part, path, params.of(stem).memory)
        for stem, part in subject.each.items()
        for kind, path in part.graphs.items()
    ]
    largest = max(_largest_tensor(path) for path in subject.of_kind(FLOAT).values())
    lengths = {name: length for name, _, _, length in graphs}
    result: dict[str, Any] = {"largest_tensor_bytes": largest, "build": {}, "lengths": lengths, "session": {}}
    kinds = {"export": "onnx", **({"quantize": "int8"} if QUANTIZED in subject.kinds else {})}
    with (
        progress("memory", len(kinds) + len(graphs)) as advance,
        tempfile.TemporaryDirectory(dir="models", prefix=".rebuild-") as scratch,
        ThreadPoolExecutor(_AT_ONCE) as processes,  # most of their time goes to imports, which take one core
    ):
        measured = {
            stage: (
                processes.submit(measure_module, "validate.imports", *_libraries(stage, subject.component)),
                processes.submit(measure_module, stage, subject.name, "--out", str(Path(scratch) / kind)),
            )
            for stage, kind in kinds.items()
        }
        alone = processes.submit(measure_module, "validate.imports", "numpy", "onnxruntime")
        for stage, kind in kinds.items():
            base, peak = (process.result() for process in measured[stage])
            built = artifact.fingerprint(Path(scratch) / kind)
            result["build"][stage] = {
                "libraries_bytes": base,
                "peak_bytes": peak,
                "rebuilt_the_same": built == artifact.fingerprint(subject.folders[kind]),
            }
            advance(1)
        base = alone.result()
        for name, part, graph, length in graphs:  # one by one: their graphs may fill the memory
            peak = measure_module("validate.loaded", str(graph), str(threads), describe_inputs(part.contract, length))
            data = data_file(graph).stat().st_size
            result["session"][name] = {"libraries_bytes": base, "peak_bytes": peak, "data_bytes": data}
            advance(1)
    return result


def describe_inputs(contract: GraphContract, length: int) -> str:
    """Describe a graph's inputs as ``validate.loaded`` takes them, which makes them itself: they count there."""
    sizes = contract.sizes(1, length)
    integers = {port.name: contract.integer(port, length) for port in contract.inputs if port.dtype != "FLOAT"}
    return json.dumps({port.name: [port.sized(sizes), integers.get(port.name)] for port in contract.inputs})


def _libraries(stage: str, component: Component) -> list[str]:
    """Modules that a stage imports whatever the size of the component."""
    if stage == "quantize":
        return ["quantize.__main__", *([component.exporter] if component.composed_of else [])]
    return ["omni.streamed", component.exporter, *([] if component.constructed else _TRACING)]


def _largest_tensor(path: Path) -> int:
    return max(value.const_value.nbytes for value in ir.load(path).graph.initializers.values())
