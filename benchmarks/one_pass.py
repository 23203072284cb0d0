"""Quantize a decoder straight from a checkpoint of full size: ``python -m benchmarks.one_pass``.

It writes a synthetic checkpoint, 15 GB for the Thinker, in a folder that is gone afterwards, and prints the memory that
the build takes above its libraries, its time, and the size of what it wrote.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.building import built
from benchmarks.report import JsonFile, Overwrite, json_file, print_table
from components import component
from omni.resources import machine, measure_module
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

__all__ = ["main"]

_OUT = Path("models/one-pass")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Decoder: thinker or talker.")] = "thinker",
    layers: Annotated[str, typer.Option(help="Number of layers; full for all.")] = "full",
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the memory, the time and the disk that it takes to quantize a decoder in one pass."""
    json = json_file(json, overwrite=overwrite)
    if not component(name).constructed:
        raise UserError(f"{name}: traced and not constructed; only a decoder is quantized in one pass")
    with built(layers, [("pull", name)]):
        found = _measure(name)
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    rows = [
        ["checkpoint", f"{found['checkpoint_bytes'] / 1e9:.2f} GB"],
        ["graph and data", f"{found['graph_bytes'] / 1e9:.2f} GB"],
        ["embedding table", f"{found['table_bytes'] / 1e9:.2f} GB"],
        ["peak memory", f"{found['peak_bytes'] / 2**20:.0f} MiB"],
        ["above the libraries'", f"{(found['peak_bytes'] - found['libraries_bytes']) / 2**20:.0f} MiB"],
        ["time", f"{found['seconds']:.0f} s"],
    ]
    print_table([[f"{name}, {layers} layers, {found['scheme']}", ""], *rows])
    if json:
        artifact.write_json(json, found)


def _measure(name: str) -> dict[str, Any]:
    libraries = measure_module("validate.imports", "omni.streamed", f"export.{name}")
    start = time.perf_counter()
    peak = measure_module("export", name, "--quantized", "--out", str(_OUT))
    seconds = time.perf_counter() - start
    (graph,) = artifact.read_manifest(_OUT)["graphs"]
    sizes = {path.name: path.stat().st_size for path in _OUT.iterdir()}
    return {
        "machine": machine(),
        "component": name,
        "scheme": graph.rpartition("_")[2],
        "checkpoint_bytes": (Path("models/source") / name / "model.safetensors").stat().st_size,
        "graph_bytes": sum(size for file, size in sizes.items() if file.startswith(graph)),
        "table_bytes": sum(size for file, size in sizes.items() if file.endswith(".npy")),
        "libraries_bytes": libraries,
        "peak_bytes": peak,
        "seconds": seconds,
    }


if __name__ == "__main__":
    run_app(app)
