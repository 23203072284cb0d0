"""Compare a decoder with its peers: ``python -m benchmarks.decoder``.

It builds the Talker, or the Thinker, at full depth, from synthetic weights, in a folder that is gone afterwards.
Accuracy is judged against PyTorch in float32. Speed is judged beside two baselines, PyTorch and our float32 graph, with
each of which every way takes turns: only those two are in memory at any time.

A step is timed again and again at the same past: after each, the token is forgotten.
"""

from __future__ import annotations

import contextlib
from functools import partial
from importlib import metadata
from typing import Annotated, Any

import typer

from benchmarks.building import temporary_folder
from benchmarks.decoder import genai
from benchmarks.decoder.bench import TOKENS, Bench, depth, require_possible, synthesize
from benchmarks.decoder.build import build_all
from benchmarks.decoder.contest import compare
from benchmarks.decoder.goals import goals
from benchmarks.decoder.rates import rates
from benchmarks.decoder.tables import print_all
from benchmarks.decoder.ways import builders
from benchmarks.options import JsonFile, Overwrite, json_file
from benchmarks.report import circumstances
from omni.command_line import run_app
from omni.params import load
from omni.resources import machine
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    component: Annotated[str, typer.Option(help="talker or thinker")] = "talker",
    layers: Annotated[str, typer.Option(help="full, or a number")] = "full",
    past: Annotated[int, typer.Option(min=1, help="tokens of the prompt, after which a step is taken")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="runs of each way; of those that take long, fewer")] = 30,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print accuracy, speed and memory of a decoder in every way to run it. Nothing else should run meanwhile."""
    json = json_file(json, overwrite=overwrite)
    count = _layers(layers)
    require_possible(component, count, past)
    threads = load().sessions.threads
    with temporary_folder() as folder:
        decoder = synthesize(component, count, folder)
        bench = Bench(component, decoder, folder, threads, threads or int(machine()["cores"]), past)
        with contextlib.chdir(folder):  # where PyTorch's weights are looked for, too
            found = _measure(bench, rounds)
    print_all(found)
    if json:
        artifact.write_json(json, found)


def _layers(text: str) -> int | str:
    if text != "full" and not (text.isdecimal() and int(text)):
        raise UserError(f"--layers: {text!r} is not allowed: give full or a number of layers")
    return text if text == "full" else int(text)


def _measure(bench: Bench, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = circumstances(bench.name, bench.cores, rounds, openvino=False)
    found |= {
        "component": bench.name,
        "layers": bench.size.layers,
        "depth": depth(bench.name),
        "past": bench.past,
        "tokens": TOKENS,
        "memory": build_all(bench),
    }
    made = builders(bench)
    if genai.installed():
        found["memory"][genai.GENAI] = genai.build(bench)
        made[genai.GENAI] = partial(genai.way, bench)
        found["versions"]["onnxruntime-genai"] = metadata.version("onnxruntime-genai")
    found["ways"] = compare(bench, made, rounds)
    found["rates"] = rates(bench, rounds)
    found["goals"] = goals(found)
    return found


if __name__ == "__main__":
    run_app(app)
