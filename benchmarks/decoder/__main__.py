"""Compare a decoder with its peers: ``python -m benchmarks.decoder``.

It builds the Talker, or the Thinker, at full depth, from synthetic weights, in a folder that is gone afterwards.
Accuracy is judged against PyTorch in float32. Speed is judged beside two baselines, PyTorch and our float32 graph, with
each of which every contender takes turns: only those two are in memory at any time.

A step is timed repeatedly at the same past: after each, its token is taken back out of the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from typing import Annotated, Any

import typer

from benchmarks import report
from benchmarks.building import temporary_folder
from benchmarks.decoder import genai
from benchmarks.decoder.bench import INT4, TOKENS, Bench, build_all, depth, require_possible, synthesize
from benchmarks.decoder.contenders import builders, compare
from benchmarks.decoder.rates import rates
from benchmarks.report import JsonFile, Overwrite, decibels, number
from omni.params import load
from omni.resources import machine
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

__all__ = ["goals", "main"]

_BANDWIDTH = 0.75  # smallest share of the machine's read bandwidth that a step reaches
_SAMPLING = 0.02  # a step's sampling takes less than this share of it
_MB, _GB = 1e6, 1e9
_TIMED = {
    "step": "a step: one token, after a past of {past}",
    "prefill": "a prompt of {past} tokens, and the logits after it",
}
_GOALS = {
    "bandwidth": "a step reads at least {at_least:.0%} of what the machine can",
    "sampling": "sampling takes less than {below:.0%} of a step",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    component: Annotated[str, typer.Option(help="Decoder: talker or thinker.")] = "talker",
    layers: Annotated[str, typer.Option(help="Number of layers; full for all.")] = "full",
    past: Annotated[int, typer.Option(min=1, help="Tokens of the prompt, after which a step is taken.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Largest number of runs; slow contenders take fewer.")] = 30,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print accuracy, speed and memory of a decoder in every runtime. Nothing else should run meanwhile."""
    json = report.json_file(json, overwrite=overwrite)
    count = _layers(layers)
    require_possible(component, count, past)
    threads = load().sessions.threads
    with temporary_folder() as folder:
        decoder = synthesize(component, count, folder)
        bench = Bench(component, decoder, folder, threads, threads or int(machine()["cores"]), past)
        with contextlib.chdir(folder):  # PyTorch's weights are looked for here, too
            found = _measure(bench, rounds)
    _print(found)
    if json:
        artifact.write_json(json, found)


def goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each goal of a step of the Talker at full depth, its measurement, and whether it is met; else nothing.

    Args:
        found: Measurements: ``component``, ``layers``, ``depth`` and ``rates``.
    """
    if found["component"] != "talker" or found["layers"] != found["depth"]:
        return []
    step = found["rates"]["steps"][INT4]
    share, sampling = step["share"], step["sampling"]["share"]
    met = {"bandwidth": share["ratio"] >= _BANDWIDTH, "sampling": sampling["ratio"] < _SAMPLING}
    return [
        {"of": "bandwidth", "contender": INT4, "at_least": _BANDWIDTH, **share, "met": met["bandwidth"]},
        {"of": "sampling", "contender": INT4, "below": _SAMPLING, **sampling, "met": met["sampling"]},
    ]


def _layers(text: str) -> int | str:
    if text != "full" and not (text.isdecimal() and int(text)):
        raise UserError(f"--layers: {text!r} is not allowed: give full or a number of layers")
    return text if text == "full" else int(text)


def _measure(bench: Bench, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = report.circumstances(bench.name, bench.cores, rounds, openvino=False)
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
        made[genai.GENAI] = partial(genai.open_built, bench)
        found["versions"]["onnxruntime-genai"] = metadata.version("onnxruntime-genai")
    found["contenders"] = compare(bench, made, rounds)
    found["rates"] = rates(bench, rounds)
    found["goals"] = goals(found)
    return found


def _print(found: Mapping[str, Any]) -> None:
    """Print the machine, every table, and the goals."""
    report.print_circumstances(
        found,
        f"{found['component']}, {found['layers']} layers; speed: how many times as fast as PyTorch float32 and as our "
        f"float32 graph, by medians of at most {found['rounds']} rounds",
        openvino=False,
    )
    if "onnxruntime-genai" not in found["versions"]:
        print("onnxruntime-genai: not installed (pip install '.[bench]')")
    _print_accuracy(found)
    for what, title in _TIMED.items():
        _print_speeds(found["contenders"], what, title.format(past=found["past"]))
    _print_rates(found)
    _print_memory(found["memory"])
    _print_goals(found)


def _print_accuracy(found: Mapping[str, Any]) -> None:
    print(f"\nlogits of {found['tokens']} tokens beside PyTorch's float32, each after all before it")
    rows = [
        [row["contender"], number(row["mb"], 1), decibels(row["sqnr_db"]), f"{row['top1']:.3f}"]
        for row in found["contenders"]
    ]
    report.print_table([["contender", "MB", "SQNR dB", "top-1"], *rows])


def _print_speeds(rows: list[dict[str, Any]], what: str, title: str) -> None:
    print(f"\n{title}")
    table = [["contender", "ms", "x PyTorch", "95 %", "x float32", "95 %"]]
    table += [[row["contender"], number(row[what]["ms"], 1), *report.speed_cells(row[what]["speed"])] for row in rows]
    report.print_table(table)


def _print_rates(found: Mapping[str, Any]) -> None:
    rates = found["rates"]
    print(
        f"\nread bandwidth of this machine: {rates['bytes_a_second'] / _GB:.1f} GB/s, the best of all readings of "
        f"{rates['buffer_bytes'] / _GB:.2f} GB by {rates['reading_threads']} threads, each its own part"
    )
    table = [
        ["a step", "reads MB", "ms", "of the bandwidth", "95 %", "in MatMulNBits", "sampling ms", "of the step", "95 %"]
    ]
    for name, step in rates["steps"].items():
        sampling = step["sampling"]
        cells = [name, number(step["bytes"] / _MB, 1), number(step["ms"], 1), *_share(step["share"])]
        table.append([*cells, f"{step['kernels']:.0%}", number(sampling["ms"], 2), *_share(sampling["share"])])
    report.print_table(table)
    print(
        f"\na past of {rates['longer_past']} tokens for {found['past']}: to read the keys and values that are added "
        f"takes {rates['longer_read_ms']:.1f} ms; to copy all {rates['longer_cache_bytes'] / _MB:.0f} MB of them once "
        f"would take {rates['longer_copy_ms']:.1f} ms"
    )
    table = [["a step", "ms", "more ms", "times as long", "95 %"]]
    for name, step in rates["steps"].items():
        longer, times = step["longer"], step["longer"]["times"]
        cells = [
            name,
            number(longer["ms"], 1),
            number(longer["more_ms"], 1),
            number(times["ratio"], 2),
        ]
        table.append([*cells, f"{times['low']:.2f} to {times['high']:.2f}"])
    report.print_table(table)


def _share(share: Mapping[str, float]) -> list[str]:
    return [f"{share['ratio']:.1%}", f"{share['low']:.1%} to {share['high']:.1%}"]


def _print_memory(memory: Mapping[str, Mapping[str, int]]) -> None:
    print("\npeak memory of the process that builds a graph, in MB")
    rows = [
        [name, *(number(built[f"{key}_bytes"] / _MB, 0) for key in ("data", "peak", "libraries", "above"))]
        for name, built in memory.items()
    ]
    report.print_table([["graph", "its data", "peak", "libraries", "above them"], *rows])


def _print_goals(found: Mapping[str, Any]) -> None:
    if not found["goals"]:
        print("\ngoals: of the Talker at full depth; not judged here")
        return
    print("\ngoals, of the Talker at full depth:")
    for goal in found["goals"]:
        share, interval = _share(goal)
        what = _GOALS[goal["of"]].format(**goal)
        print(f"- {goal['contender']}: {what}: {share} ({interval}): {'met' if goal['met'] else 'MISSED'}")


if __name__ == "__main__":
    run_app(app)
