"""The tables that people read: what quantization costs, node by node and kind by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qwen_omni_onnx.common.metrics import EXACT_DB

__all__ = ["show", "show_gains"]

_PRINTED = 20  # nodes of a scheme, the noisiest; the report has all


def show(name: str, found: Mapping[str, Any], length: str) -> None:
    """Print a report as tables.

    Args:
        name: Name of the component.
        found: Content of ``sensitivity.GRAPH.json``.
        length: Length that times were measured at, with its unit.
    """
    for scheme in found["everywhere"]:
        rows, kinds = found["nodes"][scheme], found["kinds"][scheme]
        more = f", the noisiest {_PRINTED} of {len(rows)}" if len(rows) > _PRINTED else ""
        _print_rows(f"{name}: {scheme}, node by node{more}; ms at {length}", "node", rows[:_PRINTED])
        if len(kinds) < len(rows):
            _print_rows(f"{name}: {scheme}, by kind; ms at {length}", "kind", kinds)
    base = found["float32"]
    lines = [["float32", "", "", f"{base['bytes'] / 1e6:.1f}", f"{base['ms']:.1f}"]]
    for scheme, row in found["everywhere"].items():
        both = [f"{row['predicted_db']:.1f}", f"{row['measured_db']:.1f}"]
        lines.append([scheme, *both, f"{row['bytes'] / 1e6:.1f}", f"{row['ms']:.1f}"])
    busy = f"other processes on {found['cores_busy_with_other_processes']} cores"
    _print(f"{name}: everywhere; {busy}", ["scheme", "sum of nodes dB", "measured dB", "MB", "ms"], lines)
    lines = [
        [
            str(row["float32_nodes"]),
            row["last"],
            "exact" if row["predicted_db"] >= EXACT_DB else f"{row['predicted_db']:.1f}",
            f"{row['more_mb']:.1f}",
            f"{row['more_ms']:.1f}",
        ]
        for row in found["frontier"]["rows"]
    ]
    title = f"{name}: {found['frontier']['scheme']}, but the most profitable nodes float32"
    _print(title, ["float32 nodes", "the last of them", "predicted dB", "+ MB", "+ ms"], lines)


def show_gains(name: str, found: Mapping[str, Any]) -> None:
    """Print the report about a graph with logits as tables.

    Args:
        name: Name of the component.
        found: Content of ``sensitivity.GRAPH.json``.
    """
    scheme = found["wider"]
    rows, kinds = found["nodes"][scheme], found["kinds"][scheme]
    more = f", the best {_PRINTED} of {len(rows)}" if len(rows) > _PRINTED else ""
    _print_gains(f"{name}: each node alone widened to {scheme}{more}", "node", rows[:_PRINTED])
    if len(kinds) < len(rows):
        _print_gains(f"{name}: widened to {scheme}, by kind", "kind", kinds)
    measured = {"as params.yaml says": found["recipe"], f"{scheme} everywhere": found["everywhere"][scheme]}
    lines = [[what, f"{row['kl']:.4f}", f"{row['bytes'] / 1e6:.1f}"] for what, row in measured.items()]
    _print(f"{name}: measured on {found['tokens']} tokens", ["schemes", "KL", "MB"], lines)
    lines = [
        [str(row["wide_nodes"]), row["last"], f"{row['predicted_kl']:.4f}", f"{row['more_mb']:.2f}"]
        for row in found["frontier"]["rows"]
    ]
    title = f"{name}: the most profitable nodes {scheme}"
    _print(title, ["nodes", "the last of them", "sum of nodes KL", "+ MB"], lines)


def _print_gains(title: str, what: str, rows: list[dict[str, Any]]) -> None:
    lines = [
        [
            row["name"] + (f" ({row['nodes']})" if row["nodes"] > 1 else ""),
            f"{row['kl_gain']:.5f}",
            f"{row['share_of_kl']:.1%}",
            f"{row['more_mb']:.2f}",
            f"{row['kl_gain_per_mb']:.5f}",
        ]
        for row in rows
    ]
    _print(title, [what, "KL less", "of the KL", "+ MB", "KL less per MB"], lines)


def _print_rows(title: str, what: str, rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        bought, rate = row["float32_buys_db"], row["float32_buys_db_per_ms"]
        count = f" ({row['nodes']})" if row["nodes"] > 1 else ""
        lines.append(
            [
                row["name"] + count,
                f"{row['sqnr_db']:.1f}",
                f"{row['share_of_noise']:.1%}",
                f"{row['saves_mb']:.2f}",
                f"{row['saves_ms']:.2f}",
                "all" if bought is None else f"{bought:.2f}",
                f"{rate:.3f}" if rate is not None else "" if bought is None else "no slower",
            ]
        )
    columns = [what, "alone dB", "of the noise", "saves MB", "saves ms", "float32 buys dB", "dB per ms"]
    _print(title, columns, lines)


def _print(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a log has no width of its own; 80 columns would fold every row
    console.print(table)
