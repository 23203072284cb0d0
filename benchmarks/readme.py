"""Write the tables of figures in README.md and docs/trained.md: ``python -m benchmarks.readme``.

No figure is typed by hand: they come from the reports that Git keeps. A table stands between two comments,
``<!-- measured: NAME -->`` and ``<!-- end -->``; the command replaces what lies between, and a test compares the
committed pages with the committed reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.agreement import BFLOAT16, FLOAT, QUANTIZED
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

__all__ = ["PAGES", "main", "written"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Read = Callable[[str], str]  # the content of a file, by its path in the repository
_TABLE = re.compile(r"<!-- measured: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class _Row:
    """A line of the table of all components.

    Attributes:
        name: First cell.
        component: Component whose summary is read.
        check: Check of parity.
        graph: File stem of the graph that is timed.
        length: Length of the input that is timed.
        unit: Name of that length.
        sized: Whether the line gives the component's size; one line of each component does.
        classes: Whether the output is logits or codes, which top-1 is counted of.
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
    _Row("frontend", "frontend", "input_features", "log_mel", 160_000, "10 s of sound"),
    _Row("encoder, INT8", "encoder", "audio_features", "audio_encoder", 1000, "10 s of sound"),
    _Row("Thinker, INT4", "thinker", "prompt", "thinker", 1, "a token", classes=True),
    _Row("Talker, INT8", "talker", "prompt", "talker", 1, "a code", classes=True),
    _Row("token2wav, INT8: DiT, mel", "token2wav", "mel", "dit_step", 40, "an evaluation of 9.6 s"),
    _Row("token2wav, INT8: vocoder", "token2wav", "vocoder", "bigvgan", 48, "0.48 s of sound", sized=False),
    _Row("projection, INT8", "projection", "audio_logits", "qwen25_7b_audio", 50, "50 tokens", classes=True),
    _Row("audio_core, INT8", "audio_core", "codes", "agi_audio_core", 3200, "0.2 s of sound", classes=True),
)


def written(page: str, text: str, read: Read) -> str:
    """Return a page with its table written anew.

    Args:
        page: Path of the page in the repository.
        text: Its text.
        read: Returns the content of a report.

    Raises:
        UserError: The page has a table of another name, or lacks its own.
    """
    name, table = PAGES[page]
    found = _TABLE.findall(text)
    if found != [name]:
        raise UserError(f"{page}: tables {', '.join(found) or 'none'} between comments, not {name}")
    return _TABLE.sub(lambda at: f"<!-- measured: {at[1]} -->\n{table(read)}\n<!-- end -->", text)


def _components(read: Read) -> str:
    """Return the table with size, accuracy and speed of every component in the last full build."""
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
    """Return three cells of the quantized graph: its median token, how far it is below bfloat16, and top-1."""
    if found is None:
        return ["", "", ""]
    if yardstick is None:  # a waveform, or codes: no tokens to compare
        return ["", "", f"{found['top1']:.3f}"] if classes else [f"{found['sqnr_db']:.1f} dB, worst case", "", ""]
    tokens = [(found[key], yardstick[key]) for key in ("token_median_db", "token_p95_db")]
    median = f"{tokens[0][0]:.1f} dB ({tokens[0][1]:.1f})"
    below = ", ".join(f"{theirs - ours:.1f}" for ours, theirs in tokens) + " dB"
    return [median, below, f"{found['top1']:.3f} ({yardstick['top1']:.3f})" if classes else ""]


def _trained(read: Read) -> str:
    """Return the table with every recipe on the trained siblings; the one that ships is bold."""
    found = json.loads(read("reports/trained.json"))["components"]
    encoder, decoder = _by_recipe(found["encoder"]), _by_recipe(found["thinker"])
    head = [
        "", "Whisper-base's encoder", "time", "median token, 95 %", "below bfloat16", "gate",
        "SmolLM2-135M", "time", "median token", "below bfloat16", "KL", "top-1, strict", "gate",
    ]  # fmt: skip
    lines = []
    for recipe in dict.fromkeys([*encoder, *decoder]):
        title = recipe + ", careless" * any(rows[recipe]["careless"] for rows in (encoder, decoder) if recipe in rows)
        lines.append([title, *_encoder_cells(encoder.get(recipe)), *_decoder_cells(decoder.get(recipe))])
    return _table(head, lines)


def _by_recipe(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return rows by recipe, in the order of the table."""
    found = {row["recipe"]: row for row in rows}
    first = [FLOAT, "PyTorch bfloat16", "as built"]
    return {recipe: found[recipe] for recipe in [*first, *found] if recipe in found}


def _encoder_cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return [""] * 5
    found = row["checks"]["audio_features"]
    tokens = f"{found['token_median_db']:.1f}, {found['token_p95_db']:.1f} dB"
    return [_size(row), _time(row), tokens, _below(row, found), _mark(row)]


def _decoder_cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return [""] * 7
    found = row["checks"]["prompt"]
    tokens = f"{found['token_median_db']:.1f} dB"
    return [
        _size(row),
        _time(row),
        tokens,
        _below(row, found),
        f"{found['kl']:.2g}",
        f"{found['top1']:.3f}",
        _mark(row),
    ]


def _size(row: Mapping[str, Any]) -> str:
    size = _megabytes(row["mb"])
    return f"**{size}**" if row["recipe"] == "as built" else size


def _time(row: Mapping[str, Any]) -> str:
    """Return the time of a recipe's graph as a multiple of the built one's."""
    return "1" if row["recipe"] == "as built" else f"{row['time']:.2f}" if "time" in row else ""


def _below(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    below = [found.get(f"below_bfloat16_{which}_db") for which in ("median", "p95")]
    return "" if None in below or row["passes"] is None else f"{below[0]:.1f}, {below[1]:.1f} dB"


def _mark(row: Mapping[str, Any]) -> str:
    return {True: "green", False: "red", None: ""}[row["passes"]]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MB" if value >= 100 else f"{value:.1f} MB"


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 20 else f"{value:.2g} ms"


PAGES: Mapping[str, tuple[str, Callable[[Read], str]]] = {
    "README.md": ("components", _components),
    "docs/trained.md": ("trained", _trained),
}


@app.command()
def main() -> None:
    """Write the tables of README.md and docs/trained.md from reports/*/summary.json and reports/trained.json."""
    for page in PAGES:
        before = Path(page).read_text(encoding="utf-8")
        after = written(page, before, _report)
        if after != before:
            with output.writing(Path(page)) as beside:
                beside.write_text(after, encoding="utf-8")
        print(f"{page}: {'as before' if after == before else 'written'}")


def _report(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name}: missing; run make repro, and make trained") from None


if __name__ == "__main__":
    run_app(app)
