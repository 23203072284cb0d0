"""How much memory do building and running take?

What export took, it recorded itself. Quantize, where there is something to quantize, runs again in a process whose peak
is read at its end, and what that writes is compared with the artifact: a wrong byte of a quantized weight that no
distance metric would see turns up here.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir

from omni import export_memory, resources
from omni.component import Component
from omni.params import MeasuredParams
from omni.streamed import data_file
from qwen_omni_onnx.common.contract import GraphContract
from validate import rebuild
from validate.subject import FLOAT, QUANTIZED, Subject

__all__ = ["describe_inputs", "measure"]


def measure(subject: Subject, params: MeasuredParams, threads: int) -> dict[str, Any]:
    """Return peaks in bytes of export, quantize and a session of each graph, and whether quantize repeats itself.

    Args:
        subject: the component.
        params: its block, which says what lengths the sessions run.
        threads: of the sessions.

    Raises:
        UserError: export recorded nothing, or of another artifact; one of the processes failed or was killed.
    """
    graphs = [
        (f"{stem} {kind}" if subject.parts else kind, part, path, params.of(stem).memory)
        for stem, part in subject.each.items()
        for kind, path in part.graphs.items()
    ]
    build: dict[str, Any] = {"export": export_memory.read(subject.name, subject.folders["onnx"])}
    session: dict[str, Any] = {}
    with (
        resources.progress("memory", 1 + len(graphs)) as advance,
        ThreadPoolExecutor() as processes,  # most of the time of these goes to imports, which take one core
    ):
        alone = processes.submit(resources.measure_module, "validate.imports", "numpy", "onnxruntime")
        if QUANTIZED in subject.kinds:
            base = processes.submit(resources.measure_module, "validate.imports", *_quantize_imports(subject.component))
            peak, other = rebuild.again("quantize", subject)
            build["quantize"] = {
                "libraries_bytes": base.result(),
                "peak_bytes": peak,
                "rebuilt_the_same": not other,
            }
        advance(1)
        for name, part, graph, length in graphs:  # one by one: their graphs may fill the memory
            described = describe_inputs(part.contract, length)
            peak = resources.measure_module("validate.loaded", str(graph), str(threads), described)
            data = data_file(graph).stat().st_size
            session[name] = {"libraries_bytes": alone.result(), "peak_bytes": peak, "data_bytes": data}
            advance(1)
    return {
        "largest_tensor_bytes": max(_largest_tensor(path) for path in subject.of_kind(FLOAT).values()),
        "build": build,
        "lengths": {name: length for name, _, _, length in graphs},
        "session": session,
    }


def describe_inputs(contract: GraphContract, length: int) -> str:
    """Describe a graph's inputs as ``validate.loaded`` takes them, which makes them itself: they count there."""
    sizes = contract.sizes(1, length)
    integers = {port.name: contract.integer(port, length) for port in contract.inputs if port.dtype != "FLOAT"}
    return json.dumps({port.name: [port.sized(sizes), integers.get(port.name)] for port in contract.inputs})


def _quantize_imports(component: Component) -> list[str]:
    """Modules that quantize imports whatever the size of the component."""
    return ["quantize.__main__", *([component.exporter] if component.composed_of else [])]


def _largest_tensor(path: Path) -> int:
    return max(value.const_value.nbytes for value in ir.load(path).graph.initializers.values())
