"""What was measured, for a reader: Markdown tables, and a sentence for everything that is no row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report import decibels, number, print_circumstances, print_table

__all__ = ["print_all"]

_MB, _GB = 1e6, 1e9
_PARTS = {
    "step": "a step: one token, after a past of {past}",
    "prefill": "a prompt of {past} tokens, and the logits after it",
}
_GOALS = {
    "bandwidth": "a step reads at least {at_least:.0%} of what the machine can",
    "sampling": "sampling takes less than {below:.0%} of a step",
}


def print_all(found: Mapping[str, Any]) -> None:
    """Print the machine, every table, and the goals."""
    print_circumstances(
        found,
        f"{found['component']}, {found['layers']} layers; speed: how many times as fast as PyTorch float32 and as our "
        f"float32 graph, by medians of at most {found['rounds']} rounds",
        openvino=False,
    )
    if "onnxruntime-genai" not in found["versions"]:
        print("onnxruntime-genai: not installed (pip install '.[bench]')")
    _print_accuracy(found)
    for part, what in _PARTS.items():
        _print_speeds(found["ways"], part, what.format(past=found["past"]))
    _print_rates(found)
    _print_memory(found["memory"])
    _print_goals(found)


def _print_accuracy(found: Mapping[str, Any]) -> None:
    print(f"\nlogits of {found['tokens']} tokens beside PyTorch's float32, each after all before it")
    rows = [[row["way"], number(row["mb"], 1), decibels(row["sqnr_db"]), f"{row['top1']:.3f}"] for row in found["ways"]]
    print_table([["way", "MB", "SQNR dB", "top-1"], *rows])


def _print_speeds(ways: list[dict[str, Any]], part: str, what: str) -> None:
    print(f"\n{what}")
    table = [["way", "ms", "x PyTorch", "95 %", "x float32", "95 %"]]
    for row in ways:
        cells = [row["way"], number(row[part]["ms"], 1)]
        for beside in row[part]["speed"].values():
            cells += [number(beside["speedup"], 2), f"{beside['low']:.2f} to {beside['high']:.2f}"]
        table.append(cells)
    print_table(table)


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
        cells = [
            name,
            number(step["bytes"] / _MB, 1),
            number(step["ms"], 1),
            *_share(step["share"]),
            f"{step['kernels']:.0%}",
        ]
        table.append([*cells, number(sampling["ms"], 2), *_share(sampling["share"])])
    print_table(table)
    print(
        f"\na past of {rates['longer_past']} tokens for {found['past']}: to read the keys and values that are added "
        f"takes {rates['longer_read_ms']:.1f} ms; to copy all {rates['longer_cache_bytes'] / _MB:.0f} MB of them once "
        f"would take {rates['longer_copy_ms']:.1f} ms"
    )
    table = [["a step", "ms", "more ms", "times as long", "95 %"]]
    for name, step in rates["steps"].items():
        longer, times = step["longer"], step["longer"]["times"]
        cells = [name, number(longer["ms"], 1), number(longer["more_ms"], 1), number(times["ratio"], 2)]
        table.append([*cells, f"{times['low']:.2f} to {times['high']:.2f}"])
    print_table(table)


def _share(share: Mapping[str, float]) -> list[str]:
    return [f"{share['ratio']:.1%}", f"{share['low']:.1%} to {share['high']:.1%}"]


def _print_memory(memory: Mapping[str, Mapping[str, int]]) -> None:
    print("\npeak memory of the process that builds a graph, in MB")
    rows = [
        [name, *(number(built[f"{key}_bytes"] / _MB, 0) for key in ("data", "peak", "libraries", "above"))]
        for name, built in memory.items()
    ]
    print_table([["graph", "its data", "peak", "libraries", "above them"], *rows])


def _print_goals(found: Mapping[str, Any]) -> None:
    if not found["goals"]:
        print("\ngoals: of the Talker at full depth; not judged here")
        return
    print("\ngoals, of the Talker at full depth:")
    for goal in found["goals"]:
        share, interval = _share(goal)
        what = _GOALS[goal["of"]].format(**goal)
        print(f"- {goal['way']}: {what}: {share} ({interval}): {'met' if goal['met'] else 'MISSED'}")
