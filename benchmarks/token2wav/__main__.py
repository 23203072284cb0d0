"""Compare token2wav with its peers: ``python -m benchmarks.token2wav``.

By default it builds token2wav at full depth, from synthetic weights, in a folder that is gone afterwards. Accuracy is
judged against PyTorch. Speed is judged beside two baselines, PyTorch and our float32 graphs, with each of which every
contender takes turns: only those two are in memory at any time.

An utterance takes 36 evaluations of the ODE with guidance, all of one cost, and the vocoder: an evaluation is timed at
each length, the vocoder on as many frames as the run-time turns into sound at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import report
from benchmarks.building import built, run_module, temporary_folder
from benchmarks.report import JsonFile, Overwrite, decibels, number
from benchmarks.token2wav.contenders import (
    CONTEXT_FRAMES,
    FLOAT32,
    INT8,
    PYTORCH,
    VOCODED_FRAMES,
    Bench,
    Comparison,
    builders,
    compare,
    reason_not_to_run,
    require_memory_for_pytorch,
)
from benchmarks.token2wav.ours import codes_of, linearity, mel_frames, memory, rates, streaming, utterance
from components.token2wav import dit_config
from omni.params import load
from omni.resources import machine, progress
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import REFERENCE, variants
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
from validate.measured import built_components

__all__ = ["goals", "main"]

_NAME = "token2wav"
_STAGES = [(stage, _NAME) for stage in ("pull", "export", "inputs", "reference", "calibrate", "quantize")]
_CASES = [[25]]  # codes of the only golden case: nothing here reads it, and PyTorch takes long at full depth
# Goals of all evaluations and the vocoder: how many times as fast as PyTorch, by seconds of speech, in which PyTorch is
# quadratic; and as our float32 graphs, at any length.
_FLOAT32_OVER_PYTORCH = {"5": 2.5, "30": 5.0}
_INT8_OVER_FLOAT32 = 2.3
_KINDS = {FLOAT: FLOAT32, QUANTIZED: INT8}
_SPEEDS = ["x PyTorch", "95 %", "x float32", "95 %"]
_MB = 1e6
_MEMORY = ("short", "long", "libraries", "weights", "above")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    layers: Annotated[
        str, typer.Option(help="Number of layers; full for all, or built for models/ as it is.")
    ] = "full",
    seconds: Annotated[str, typer.Option(help="Lengths of speech in seconds, separated by commas.")] = "5,30",
    rounds: Annotated[int, typer.Option(min=1, help="Largest number of runs; slow contenders take fewer.")] = 10,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print accuracy, speed and memory of token2wav in every runtime. Nothing else should run meanwhile."""
    json = report.json_file(json, overwrite=overwrite)
    lengths = _lengths(seconds)
    with built(layers, _STAGES, _change), temporary_folder() as folder:
        ((measured, _),) = built_components([_NAME])
        threads = load().sessions.threads
        found = _measure(Bench(measured, threads, threads or int(machine()["cores"]), folder), lengths, rounds)
    _print(found)
    if json:
        artifact.write_json(json, found)


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each goal at a length that was compared, its measurement, and whether it is met.

    Args:
        rows: Rows of the comparison.
    """
    whole = {row["contender"]: row["whole"] for row in rows}
    limits = [(FLOAT32, PYTORCH, length, limit) for length, limit in _FLOAT32_OVER_PYTORCH.items()]
    limits += [(INT8, FLOAT32, length, _INT8_OVER_FLOAT32) for length in whole[INT8]]
    judged = []
    for name, against, length, limit in limits:
        if length in whole[name]:
            found = whole[name][length]["speed"][against]
            goal = {"contender": name, "against": against, "seconds": length, "limit": limit}
            judged.append({**goal, **found, "met": found["speedup"] >= limit})
    return judged


def _lengths(text: str) -> list[float]:
    try:
        lengths = [float(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or not all(0 < length < float("inf") for length in lengths):
        raise UserError(f"--seconds: {text!r} is not allowed: give lengths in seconds, joined by commas: 5,30")
    return sorted(set(lengths))


def _change(params: dict[str, Any]) -> None:
    """Let token2wav be built alone, from synthetic codes, and without golden cases that nothing here reads."""
    params[_NAME]["inputs"]["source"] = "synthetic"
    params[_NAME]["cases"] = _CASES


def _measure(bench: Bench, lengths: list[float], rounds: int) -> dict[str, Any]:
    config: Any = read_config(bench.measured.companions)
    task = _comparison(bench, lengths, rounds, dit_config(config)["num_attention_heads"])
    rows = compare(task, builders(bench))
    found = {
        **report.circumstances(_NAME, bench.cores, rounds),
        "layers": reduce(getitem, bench.measured.component.depth, config),
        "evaluations": task.evaluations,
        "vocoded_frames": VOCODED_FRAMES,
        "context_frames": CONTEXT_FRAMES,
        "contenders": rows,
        "goals": goals(rows),
    }
    with progress("ours", 2 * len(_KINDS) + 2) as advance:
        for name, measure in (("linearity", partial(linearity, mel=task.mel)), ("memory", memory)):
            found[name] = {}
            for kind in _KINDS:
                found[name][kind] = measure(bench, kind)
                advance(1)
        found["streaming"] = streaming(bench)
        advance(1)
        frames = next(iter(task.utterances.values()))["noise"].shape[1]
        found["rates"] = rates(bench, frames, VOCODED_FRAMES)
        advance(1)
    return found


def _comparison(bench: Bench, lengths: list[float], rounds: int, heads: int) -> Comparison:
    """Export transformers' modules as they are, and return what all contenders compute that can."""
    settings = bench.settings
    codes = {seconds: codes_of(bench, seconds) for seconds in lengths}
    frames = {seconds: settings["repeats"] * count for seconds, count in codes.items()}
    require_memory_for_pytorch(heads, max(frames.values()))
    with progress("exporting as it is", 1) as advance:
        run_module("benchmarks.token2wav.workers", "export", str(bench.folder), folder=Path.cwd())
        advance(1)
    skipped: dict[str, dict[float, str]] = {}
    for name in builders(bench):
        for seconds in lengths:
            reason = reason_not_to_run(name, heads, frames[seconds])
            if reason:
                skipped.setdefault(name, {})[seconds] = reason
    return Comparison(
        utterances={seconds: utterance(bench, count) for seconds, count in codes.items()},
        mel=mel_frames(bench, VOCODED_FRAMES + 2 * CONTEXT_FRAMES),
        frame=settings["samples_per_frame"] / OUTPUT_SAMPLE_RATE,
        evaluations=variants(settings["variants"])[REFERENCE].evaluations,
        rounds=rounds,
        skipped=skipped,
    )


def _print(found: Mapping[str, Any]) -> None:
    """Print the machine, every table, and the goals."""
    report.print_circumstances(
        found,
        f"{found['layers']} layers; speed: how many times as fast as PyTorch and as our float32 graphs, by medians of "
        f"at most {found['rounds']} rounds",
    )
    _print_contenders(found)
    _print_goals(found["goals"])
    _print_linearity(found["linearity"])
    _print_memory(found["memory"])
    _print_streaming(found["streaming"])
    _print_rates(found["rates"])


def _print_contenders(found: Mapping[str, Any]) -> None:
    rows = found["contenders"]
    lengths = list(rows[0]["evaluation"])
    for seconds in lengths:
        print(f"\nthe DiT: one of {found['evaluations']} evaluations, with guidance, of {seconds} s of speech")
        table = [["contender", "MB in all", "SQNR dB", "ms", *_SPEEDS]]
        for row in (row for row in rows if seconds in row["evaluation"]):
            evaluation, sqnr = row["evaluation"][seconds], row["sqnr_db"]["evaluation"][seconds]
            cells = [
                row["contender"],
                number(row["mb"], 1),
                decibels(sqnr),
                number(evaluation["ms"], 0),
            ]
            table.append([*cells, *report.speed_cells(evaluation["speed"])])
        report.print_table(table)
        for row in rows:
            if seconds in row["skipped"]:
                print(f"{row['contender']}: {row['skipped'][seconds]}")
    print(
        f"\nthe vocoder, BigVGAN, per second of speech: timed on {found['vocoded_frames']} mel frames, however long "
        f"the speech is; ours hears {found['context_frames']} more on each side, as it does within longer speech"
    )
    table = [["contender", "SQNR dB", "s", *_SPEEDS]]
    for row in rows:
        vocoder = row["vocoder"]
        cells = [
            row["contender"],
            decibels(row["sqnr_db"]["vocoder"]),
            number(vocoder["seconds_a_second"], 3),
        ]
        table.append([*cells, *report.speed_cells(vocoder["speed"])])
    report.print_table(table)
    for seconds in lengths:
        print(
            f"\nwhole token2wav, {seconds} s of speech, per second of it: {found['evaluations']} evaluations + vocoder"
            " (calculated from the above; of ours, + the condition)"
        )
        table = [["contender", "s", *_SPEEDS]]
        for row in (row for row in rows if seconds in row["whole"]):
            whole = row["whole"][seconds]
            table.append([row["contender"], number(whole["seconds_a_second"], 2), *report.speed_cells(whole["speed"])])
        report.print_table(table)


def _print_goals(goals: list[dict[str, Any]]) -> None:
    print("\ngoals, of whole token2wav:")
    for goal in goals:
        print(
            f"- {goal['contender']}, {goal['seconds']} s: at least {goal['limit']:g} times as fast as "
            f"{goal['against']}: {goal['speedup']:.2f} ({goal['low']:.2f} to {goal['high']:.2f}): "
            f"{'met' if goal['met'] else 'MISSED'}"
        )


def _print_linearity(linearity: Mapping[str, Any]) -> None:
    lengths = list(linearity[FLOAT]["seconds_a_second"])
    print(
        "\ntime per second of speech, by its length: all evaluations + vocoder (its pieces one after another, of "
        f"{linearity[FLOAT]['vocoded_seconds']:g} s at most) + condition"
    )
    head = ["contender", *(f"{seconds} s" for seconds in lengths), "farthest from the mean"]
    rows = [
        [
            _KINDS[kind],
            *(number(cost, 2) for cost in found["seconds_a_second"].values()),
            f"{found['deviation']:.1%}",
        ]
        for kind, found in linearity.items()
    ]
    report.print_table([head, *rows])


def _print_memory(memory: Mapping[str, Any]) -> None:
    short, long = (f"{memory[FLOAT][key]:g} s" for key in ("short_seconds", "long_seconds"))
    print("\npeak memory of a process that speaks, in MB; weights: the size of the graphs' files")
    rows = [
        [_KINDS[kind], *(number(found[f"{key}_bytes"] / _MB, 0) for key in _MEMORY)] for kind, found in memory.items()
    ]
    report.print_table([["contender", short, long, "libraries", "weights", f"{long} above both"], *rows])


def _print_streaming(streams: list[dict[str, Any]]) -> None:
    print(
        f"\nstream, {INT8}, {streams[0]['seconds']:.2f} s of speech, the default window, all codes there; "
        f"the first sound needs {streams[0]['first_sound_codes']} of them"
    )
    table = [["variant", "first sound s", "RTF", "RTF at once", "SQNR dB against at once"]]
    for stream in streams:
        factors = (stream["real_time_factor"], stream["real_time_factor_at_once"])
        cells = [
            stream["variant"],
            number(stream["first_sound_seconds"], 2),
            *(number(one, 2) for one in factors),
        ]
        table.append([*cells, decibels(stream["sqnr_db"])])
    report.print_table(table)


def _print_rates(rates: Mapping[str, Any]) -> None:
    print()
    for kind, found in rates.items():
        rate = found["matmul_operations_a_second"]
        print(f"one large matrix multiplication, {kind}: {rate / 1e9:.0f} G operations/s")
        for name, graph in found["graphs"].items():
            print(
                f"{name} {kind}: {graph['operations_a_second'] / 1e9:.0f} G operations/s, {graph['share']:.0%} of that"
            )
            report.print_shares(f"{name} {kind}", graph["by_operator"])


if __name__ == "__main__":
    run_app(app)
