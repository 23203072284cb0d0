"""What was measured, for a reader: Markdown tables, and a sentence for everything that is no row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from validate.subject import FLOAT, QUANTIZED

from benchmarks.profiling import print_shares
from benchmarks.report import decibels, number, print_circumstances, print_table
from benchmarks.token2wav.ways import FLOAT32, INT8

__all__ = ["print_all"]

_NAMES = {FLOAT: FLOAT32, QUANTIZED: INT8}
_SPEEDS = ["x PyTorch", "95 %", "x float32", "95 %"]
_MB = 1e6
_MEMORY = ("short", "long", "libraries", "weights", "above")


def print_all(found: Mapping[str, Any]) -> None:
    """Print the machine, every table, and the goals."""
    print_circumstances(
        found,
        f"{found['layers']} layers; speed: how many times as fast as PyTorch and as our float32 graphs, by medians of "
        f"at most {found['rounds']} rounds",
    )
    _print_ways(found)
    _print_goals(found["goals"])
    _print_linearity(found["linearity"])
    _print_memory(found["memory"])
    _print_streaming(found["streaming"])
    _print_rates(found["rates"])


def _print_ways(found: Mapping[str, Any]) -> None:
    ways = found["ways"]
    lengths = list(ways[0]["evaluation"])
    for seconds in lengths:
        print(f"\nthe DiT: one of {found['evaluations']} evaluations, with guidance, of {seconds} s of speech")
        table = [["way", "MB in all", "SQNR dB", "ms", *_SPEEDS]]
        for row in (row for row in ways if seconds in row["evaluation"]):
            evaluation, sqnr = row["evaluation"][seconds], row["sqnr_db"]["evaluation"][seconds]
            cells = [row["way"], number(row["mb"], 1), decibels(sqnr), number(evaluation["ms"], 0)]
            table.append([*cells, *_speeds(evaluation)])
        print_table(table)
        for row in ways:
            if seconds in row["skipped"]:
                print(f"{row['way']}: {row['skipped'][seconds]}")
    print(
        f"\nthe vocoder, BigVGAN, per second of speech: timed on {found['vocoded_frames']} mel frames, however long "
        f"the speech is; ours hears {found['context_frames']} more on each side, as it does within longer speech"
    )
    table = [["way", "SQNR dB", "s", *_SPEEDS]]
    for row in ways:
        cells = [row["way"], decibels(row["sqnr_db"]["vocoder"]), number(row["vocoder"]["seconds_a_second"], 3)]
        table.append([*cells, *_speeds(row["vocoder"])])
    print_table(table)
    for seconds in lengths:
        print(
            f"\nwhole token2wav, {seconds} s of speech, per second of it: {found['evaluations']} evaluations + vocoder"
            " (calculated from the above; of ours, + the condition)"
        )
        table = [["way", "s", *_SPEEDS]]
        for row in (row for row in ways if seconds in row["whole"]):
            whole = row["whole"][seconds]
            table.append([row["way"], number(whole["seconds_a_second"], 2), *_speeds(whole)])
        print_table(table)


def _speeds(measured: Mapping[str, Any]) -> list[str]:
    cells = []
    for beside in measured["speed"].values():
        cells += [number(beside["speedup"], 2), f"{beside['low']:.2f} to {beside['high']:.2f}"]
    return cells


def _print_goals(goals: list[dict[str, Any]]) -> None:
    print("\ngoals, of whole token2wav:")
    for goal in goals:
        print(
            f"- {goal['way']}, {goal['seconds']} s: at least {goal['limit']:g} times as fast as {goal['against']}: "
            f"{goal['speedup']:.2f} ({goal['low']:.2f} to {goal['high']:.2f}): {'met' if goal['met'] else 'MISSED'}"
        )


def _print_linearity(linearity: Mapping[str, Any]) -> None:
    lengths = list(linearity[FLOAT]["seconds_a_second"])
    print(
        "\ntime per second of speech, by its length: all evaluations + vocoder (its pieces one after another, of "
        f"{linearity[FLOAT]['vocoded_seconds']:g} s at most) + condition"
    )
    head = ["way", *(f"{seconds} s" for seconds in lengths), "farthest from the mean"]
    rows = [
        [_NAMES[kind], *(number(cost, 2) for cost in found["seconds_a_second"].values()), f"{found['deviation']:.1%}"]
        for kind, found in linearity.items()
    ]
    print_table([head, *rows])


def _print_memory(memory: Mapping[str, Any]) -> None:
    short, long = (f"{memory[FLOAT][key]:g} s" for key in ("short_seconds", "long_seconds"))
    print("\npeak memory of a process that speaks, in MB; weights: the size of the graphs' files")
    rows = [
        [_NAMES[kind], *(number(found[f"{key}_bytes"] / _MB, 0) for key in _MEMORY)] for kind, found in memory.items()
    ]
    print_table([["way", short, long, "libraries", "weights", f"{long} above both"], *rows])


def _print_streaming(streams: list[dict[str, Any]]) -> None:
    print(
        f"\nstream, {INT8}, {streams[0]['seconds']:.2f} s of speech, the default window, all codes there; "
        f"the first sound needs {streams[0]['first_sound_codes']} of them"
    )
    table = [["variant", "first sound s", "RTF", "RTF at once", "SQNR dB against at once"]]
    for stream in streams:
        factors = (stream["real_time_factor"], stream["real_time_factor_at_once"])
        cells = [stream["variant"], number(stream["first_sound_seconds"], 2), *(number(each, 2) for each in factors)]
        table.append([*cells, decibels(stream["sqnr_db"])])
    print_table(table)


def _print_rates(rates: Mapping[str, Any]) -> None:
    print()
    for kind, found in rates.items():
        most = found["matmul_operations_a_second"]
        print(f"one large matrix multiplication, {kind}: {most / 1e9:.0f} G operations/s")
        for name, graph in found["graphs"].items():
            print(
                f"{name} {kind}: {graph['operations_a_second'] / 1e9:.0f} G operations/s, {graph['share']:.0%} of that"
            )
            print_shares(f"{name} {kind}", graph["by_operator"])
