"""The README's tables of figures, written from the reports that Git keeps: ``python -m validate readme``.

No figure is typed by hand. A table stands between two comments, ``<!-- measured: NAME -->`` and ``<!-- end -->``; the
command replaces what lies between, and a test compares the committed README with the committed reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omni.errors import Problem
from validate.subject import BFLOAT16, FLOAT, QUANTIZED

__all__ = ["TABLES", "written"]

Read = Callable[[str], str]  # the content of a file, by its path in the repository
_TABLE = re.compile(r"(<!-- measured: (\w+) -->\n)(.*?)(\n?<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class _Row:
    """A line of the table of all components.

    Attributes:
        name: As the reader sees it.
        component: Whose summary it is read from.
        check: Of parity; "all" where a component has one.
        graph: Of latency, the same.
        length: At which it is timed.
        unit: What that is called.
        sized: Whether the line gives the component's size: once for each.
        classes: Whether the output is something to choose from.
    """

    name: str
    component: str
    check: str
    graph: str
    length: int
    unit: str
    sized: bool = True
    classes: bool = False


_ROWS = (
    _Row("frontend", "frontend", "all", "all", 160_000, "10 s of sound"),
    _Row("encoder, INT8", "encoder", "all", "all", 1000, "10 s of sound"),
    _Row("Thinker, INT4", "thinker", "prompt", "thinker", 1, "a token", classes=True),
    _Row("Talker, INT8", "talker", "prompt", "talker", 1, "a code", classes=True),
    _Row("token2wav, INT8: DiT, mel", "token2wav", "mel", "dit_step", 40, "an evaluation of 9.6 s"),
    _Row("token2wav, INT8: vocoder", "token2wav", "vocoder", "bigvgan", 48, "0.48 s of sound", sized=False),
    _Row("projection, INT8", "projection", "all", "all", 50, "50 tokens", classes=True),
    _Row("audio_core, INT8", "audio_core", "codes", "agi_audio_core", 3200, "0.2 s of sound", classes=True),
)


def written(readme: str, read: Read) -> str:
    """Return the README with its tables written anew.

    Args:
        readme: Its text.
        read: Gives the reports.

    Raises:
        Problem: It has a table of another name, or lacks one.
    """
    found = [match[1] for match in _TABLE.findall(readme)]
    if sorted(found) != sorted(TABLES):
        raise Problem(f"README.md: tables {', '.join(found) or 'none'} between comments, not {', '.join(TABLES)}")
    return _TABLE.sub(lambda match: f"{match[1]}{TABLES[match[2]](read)}{match[4]}", readme)


def _components(read: Read) -> str:
    """Sizes, accuracy and speed of every component, of the last full build."""
    head = [
        "", "float32", "quantized", "float32, worst case", "quantized, median token (bfloat16's)",
        "below bfloat16: median, 95 %", "top-1, strict (bfloat16's)", "times as fast as float32",
    ]  # fmt: skip
    return _table(head, [_line(row, json.loads(read(f"reports/{row.component}/summary.json"))) for row in _ROWS])


def _line(row: _Row, summary: Mapping[str, Any]) -> list[str]:
    kinds = summary["parity"][row.check]
    floating, quantized, yardstick = (kinds.get(kind) for kind in (FLOAT, QUANTIZED, BFLOAT16))
    time = summary["latency"][row.graph][str(row.length)]
    sizes = [_megabytes(summary["mb"].get(kind)) if row.sized else "" for kind in (FLOAT, QUANTIZED)]
    timed = f"{row.unit} in {_milliseconds(time.get('quantized_ms', time['float32_ms']))}"
    speed = f"**{time['speedup']:.2f}** ({timed})" if "speedup" in time else timed
    return [row.name, *sizes, _float(floating), *_accuracy(quantized, yardstick, row.classes), speed]


def _float(found: Mapping[str, Any]) -> str:
    if found["sqnr_db"] >= 200:
        return "the same bits" if not found["max_abs"] else f"largest difference {found['max_abs']:.1e}"
    return f"{found['sqnr_db']:.1f} dB"


def _accuracy(found: Mapping[str, Any] | None, yardstick: Mapping[str, Any] | None, classes: bool) -> list[str]:
    """Return cells on the quantized graph: its median token, how far it is below bfloat16, and top-1."""
    if found is None:
        return ["", "", ""]
    if yardstick is None:  # a waveform, or codes: no tokens to compare
        return ["", "", f"{found['top1']:.3f}"] if classes else [f"{found['sqnr_db']:.1f} dB, worst case", "", ""]
    tokens = [(found[key], yardstick[key]) for key in ("token_median_db", "token_p95_db")]
    median = f"{tokens[0][0]:.1f} dB ({tokens[0][1]:.1f})"
    below = ", ".join(f"{theirs - ours:.1f}" for ours, theirs in tokens) + " dB"
    return [median, below, f"{found['top1']:.3f} ({yardstick['top1']:.3f})" if classes else ""]


def _trained(read: Read) -> str:
    """Every recipe on the trained siblings, beside bfloat16."""
    found = json.loads(read("reports/trained.json"))["components"]
    names = {"encoder": ("Whisper-base's encoder", ""), "thinker": ("SmolLM2-135M", "prompt")}
    head = ["", "MB", "median token", "95 % of tokens", "below bfloat16: median, 95 %", "KL", "top-1, strict", "gate"]
    lines = []
    for component, (title, check) in names.items():
        lines.append([f"**{title}**", *[""] * (len(head) - 1)])
        lines += [_recipe(row, row["checks"][check]) for row in found[component]]
    return _table(head, lines)


def _recipe(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    below = [found.get(f"below_bfloat16_{which}_db") for which in ("median", "p95")]
    ours = row["recipe"] == "as built"
    name = "**ours, as built**" if ours else row["recipe"] if " " in row["recipe"] else f"`{row['recipe']}`"
    return [
        name + (", careless" if row["careless"] else ""),
        "" if row["mb"] is None else f"{row['mb']:.1f}",
        f"{found['token_median_db']:.1f} dB",
        f"{found['token_p95_db']:.1f} dB",
        "" if below[0] is None or row["passes"] is None else f"{below[0]:.1f}, {below[1]:.1f} dB",
        f"{found['kl']:.2g}" if "kl" in found else "",
        f"{found['top1']:.3f}" if "kl" in found else "",
        {True: "green", False: "red", None: ""}[row["passes"]],
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MB" if value >= 100 else f"{value:.1f} MB"


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 20 else f"{value:.2g} ms"


TABLES: Mapping[str, Callable[[Read], str]] = {"components": _components, "trained": _trained}
