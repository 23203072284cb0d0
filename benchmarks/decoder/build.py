"""Build our graphs, each in a process of its own that says what memory it took.

``python -m benchmarks.decoder.build ASKED`` builds one and ends. ASKED is JSON: ``component``, ``source`` (folder of
the checkpoint), ``out`` (a folder that is there already), ``schemes``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.building import ROOT
from benchmarks.decoder.bench import Bench, described
from export.decoder import Schemes, write
from omni.checkpoint import Checkpoint
from omni.resources import measure_module, progress
from omni.streamed import data_file
from qwen_omni_onnx.common.errors import run_command

__all__ = ["build", "build_all", "libraries_bytes", "measured"]

_LIBRARIES = ("benchmarks.decoder.build", "rich.progress", "torch")


def build_all(bench: Bench) -> dict[str, dict[str, int]]:
    """Build all graphs; return by name what :func:`measured` returns."""
    found = {}
    with progress("building", len(bench.schemes)) as advance:
        libraries = libraries_bytes(*_LIBRARIES)
        for name, schemes in bench.schemes.items():
            graph = bench.graph(name)
            graph.parent.mkdir()
            asked = {"component": bench.name, "source": str(bench.source), "out": str(graph.parent)}
            asked_json = json.dumps({**asked, "schemes": asdict(schemes)})
            found[name] = measured(graph, libraries, "benchmarks.decoder.build", asked_json)
            advance(1)
    return found


def measured(graph: Path, libraries: int, module: str, *arguments: str) -> dict[str, int]:
    """Run a module that writes a graph, in a process of its own; return sizes and memory in bytes.

    That is, of the graph's data, of the process at its peak, of its libraries, and of what the peak is above them.

    Args:
        graph: the file that will be there.
        libraries: see :func:`libraries_bytes`.
        module: name.
        arguments: of its command.

    Raises:
        UserError: the process failed or was killed.
    """
    with contextlib.chdir(ROOT):
        peak = measure_module(module, *arguments)
    return {
        "data_bytes": data_file(graph).stat().st_size,
        "peak_bytes": peak,
        "libraries_bytes": libraries,
        "above_bytes": peak - libraries,
    }


def libraries_bytes(*modules: str) -> int:
    """Return the memory of a process that does nothing but import modules."""
    with contextlib.chdir(ROOT):
        return measure_module("validate.imports", *modules)


def build(asked: dict[str, Any]) -> None:
    """Build one graph; for ``asked``, see the module."""
    _, decoder = described(asked["component"])
    write(decoder, Checkpoint(Path(asked["source"])), Path(asked["out"]), Schemes(**asked["schemes"]))


if __name__ == "__main__":
    run_command(lambda: build(json.loads(sys.argv[1])))
