"""The tables that people read."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from validate.gate import Verdict

__all__ = ["contract", "gate", "latency", "memory", "parity", "sweep", "variants"]

_MORE = {"stft": "STFT", "kl": "KL"}  # of some outputs only
_TOKENS = ("token_median_db", "token_p95_db")
_COMPARED = ["quantized ms", "speed-up", "95 % interval", "ceiling", "share of it", "95 % interval", "attempts"]
_MARK = {True: "[green]ok[/]", False: "[red]MISS[/]"}


def contract(name: str, checks: list[dict[str, Any]]) -> None:
    _print(
        f"{name}: contract",
        ["graph", "check", "", "found"],
        [[row["graph"], row["check"], _MARK[row["ok"]], escape(row["detail"])] for row in checks],
    )


def parity(name: str, compared_with: str, graphs: dict[str, Any], with_classes: bool) -> None:
    by_token = any("token_median_db" in found for found in graphs.values())
    rows = []
    for kind, found in graphs.items():
        rows += [
            [
                kind,
                case["case"],
                *[""] * 2 * by_token,
                *_agreement(case, with_classes),
                escape(str(list(case["worst"]))),
            ]
            for case in found["cases"]
        ]
        tokens = [f"{found[key]:.1f}" for key in _TOKENS if key in found]
        tokens += [""] * (2 * by_token - len(tokens))
        worst = [
            f"[bold]{kind}[/]",
            "[bold]worst[/]",
            *tokens,
            *_agreement(found, with_classes),
            escape(found["worst"]),
        ]
        rows.append(worst)
    tokens = ["median token dB", "95 % reach"] if by_token else []
    top1 = ["top-1, strict", "near ties equal"] if with_classes else []
    more = [name for key, name in _MORE.items() if any(key in found for found in graphs.values())]
    columns = ["graph", "case", *tokens, "SQNR dB", "cosine", "max abs", *more, *top1, "largest difference at"]
    _print(f"{name}: parity with {compared_with}", columns, rows)


def latency(name: str, found: dict[str, Any]) -> None:
    quantized = "speedup" in found["lengths"][0]
    rows = []
    for entry in found["lengths"]:
        row = [str(entry["length"]), f"{entry['float32_ms']:.2f}"]
        if quantized:
            intervals = [f"{entry[f'{of}_low']:.2f} to {entry[f'{of}_high']:.2f}" for of in ("speedup", "share")]
            row += [f"{entry['quantized_ms']:.2f}", f"{entry['speedup']:.2f}", intervals[0]]
            row += [f"{entry['ceiling']:.2f}", f"{entry['share']:.2f}", intervals[1], str(entry["attempts"])]
        rows.append(row)
    _print(
        f"{name}: latency, {found['threads'] or found['machine']['cores']} threads, {found['machine']['processor']}, "
        f"other processes on {found['cores_busy_with_other_processes']} cores",
        [found["axis"], "float32 ms", *(_COMPARED if quantized else [])],
        rows,
    )
    lines = [[kind, f"{fit['ms_each']:.4f}", f"{fit['ms']:.2f}"] for kind, fit in found["fit"].items()]
    if note := found["original_note"]:
        lines.append(["original note", f"{note['ms_per_token']:.4f}", f"{note['ms']:.2f}"])
    _print(f"linear fit over {found['axis']}", ["", "ms each", "+ ms"], lines)


def sweep(name: str, found: dict[str, Any]) -> None:
    for kind, graph in found["graphs"].items():
        rows = [
            [entry["provider"], str(entry["threads"]), entry["optimization"], f"{entry['ms']:.2f}", mark]
            for entry in sorted(graph["tried"], key=lambda entry: entry["ms"])
            for mark in ["[green]best[/]" if entry == graph["best"] else ""]
        ]
        columns = ["provider", "threads", "optimization", "ms", ""]
        _print(f"{name}, {kind}: session options at {found['axis']} {found['length']}", columns, rows)


def memory(name: str, found: dict[str, Any]) -> None:
    rows = []
    for what, entry in {**found["build"], **found["session"]}.items():
        base, peak = entry["libraries_bytes"] / 2**20, entry["peak_bytes"] / 2**20
        same = {True: "yes", False: "[red]NO[/]", None: ""}[entry.get("rebuilt_the_same")]
        rows.append([what, f"{base:.0f}", f"{peak:.0f}", f"{peak - base:.0f}", same])
    columns = ["", "libraries MiB", "peak MiB", "above MiB", "same bytes again"]
    _print(f"{name}: memory, largest tensor {found['largest_tensor_bytes'] / 2**20:.0f} MiB", columns, rows)


def variants(name: str, found: list[dict[str, Any]]) -> None:
    rows = [
        [
            entry["graphs"], entry["variant"], str(entry["evaluations"]), f"{entry['of_reference']:.2f}",
            f"{entry['cost']:.2f}", f"{entry['seconds_each']:.2f}", f"{entry['mel_db']:.1f}",
            f"{entry['waveform_db']:.1f}", f"{entry['stft']:.3f}",
        ]
        for entry in found
    ]  # fmt: skip
    columns = ["graphs", "variant", "evaluations", "work", "cost", "s per s", "mel dB", "waveform dB", "STFT"]
    _print(f"{name}: variants, against the float32 reference", columns, rows)


def gate(name: str, verdicts: list[Verdict], wrong: list[str]) -> None:
    rows = []
    for verdict in verdicts:
        value = "none" if verdict.value is None else f"{verdict.value:.4g}"
        limit = f"{verdict.sense} {verdict.limit:g}{verdict.note}"
        rows.append([verdict.graph, verdict.metric, f"{value} {verdict.unit}", limit, _MARK[verdict.ok]])
    rows += [["", escape(sentence), "", "", _MARK[False]] for sentence in wrong]
    _print(f"{name}: gate", ["graph", "metric", "value", "limit", ""], rows)


def _agreement(found: dict[str, Any], with_classes: bool) -> list[str]:
    more = [f"{found[key]:.4f}" for key in _MORE if key in found]
    top1 = [f"{found['top1']:.4f}", f"{found['top1_near_tie']:.4f}"] if with_classes else []
    return [f"{found['sqnr_db']:.2f}", f"{found['cosine']:.6f}", f"{found['max_abs']:.3g}", *more, *top1]


def _print(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a log has no width of its own; 80 columns would fold every row
    console.print(table)
