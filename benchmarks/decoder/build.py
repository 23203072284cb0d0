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
from omni.errors import run_command
from omni.resources import measure_module, progress
from omni.streamed import data_file

__all__ = ["build", "build_all"]

_LIBRARIES = ("benchmarks.decoder.build", "rich.progress", "torch")


def build_all(bench: Bench) -> dict[str, dict[str, int]]:
    """Build all graphs; return by name, in bytes, what was written, and the peak of the process that wrote it.

    And how much of that peak is the libraries' own, and how much is above.
    """
    found = {}
    with progress("building", len(bench.schemes)) as advance, contextlib.chdir(ROOT):
        libraries = measure_module("validate.imports", *_LIBRARIES)
        for name, schemes in bench.schemes.items():
            graph = bench.graph(name)
            graph.parent.mkdir()
            asked = {"component": bench.name, "source": str(bench.source), "out": str(graph.parent)}
            peak = measure_module("benchmarks.decoder.build", json.dumps({**asked, "schemes": asdict(schemes)}))
            found[name] = {
                "data_bytes": data_file(graph).stat().st_size,
                "peak_bytes": peak,
                "libraries_bytes": libraries,
                "above_bytes": peak - libraries,
            }
            advance(1)
    return found


def build(asked: dict[str, Any]) -> None:
    """Build one graph; for ``asked``, see the module."""
    _, decoder = described(asked["component"])
    write(decoder, Checkpoint(Path(asked["source"])), Path(asked["out"]), Schemes(**asked["schemes"]))


if __name__ == "__main__":
    run_command(lambda: build(json.loads(sys.argv[1])))
