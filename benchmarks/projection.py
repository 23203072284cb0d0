"""Compare the projection with its peers: ``python -m benchmarks.projection``, after ``make repro``.

All variants live in one process, with the same number of threads. Accuracy is judged on the golden cases, which no
calibration has seen. Speed is the median over rounds of a ratio of two runs next to each other, our float32 graph's
and the variant's: what slows the machine down for a while slows both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import frameworks, report, variants
from benchmarks.measure import Feeds, Variant, speed, time_in_turn
from benchmarks.report import JsonFile, Overwrite, decibels, number
from benchmarks.variants import Builder, Setting
from omni.inputs import HELD_OUT, feed, read
from omni.params import load
from omni.quiet import quiet
from omni.resources import progress
from qwen_omni_onnx.common import artifact, golden, output
from qwen_omni_onnx.common.agreement import NEAR_TIE
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import compare
from validate.measured import MeasuredComponent, built_components

__all__ = ["main"]

_WARM_UP = 3
_ENOUGH = 3.0  # seconds; a variant that took longer at one length sits the other rounds out: bf16 where it is emulated
_NAME = "projection"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Row:
    """What was measured of one variant.

    Attributes:
        variant: The variant.
        sqnr_db: SQNR in decibels by golden case.
        top1: Share of tokens whose largest logit is the same, by golden case.
        tokens: Number of tokens by golden case.
        baseline: Seconds of each round of what it is compared with, by length.
        own: Seconds of each round of the variant, by length.
    """

    variant: Variant
    sqnr_db: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    baseline: dict[int, list[float]] = field(default_factory=dict)
    own: dict[int, list[float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the worst SQNR, top-1 over all tokens, and by length the speed with its 95 % interval."""
        speeds = {
            str(seq): {**speed(self.baseline[seq], times), "ms": float(np.median(times) * 1e3)}
            for seq, times in self.own.items()
        }
        return {
            "variant": self.variant.name,
            "mb": self.variant.nbytes / 1e6 or None,
            "sqnr_db": min(self.sqnr_db, default=None),
            "top1": float(np.average(self.top1, weights=self.tokens)) if self.tokens else None,
            "speed": speeds,
        }


@app.command()
def main(
    seq: Annotated[str, typer.Option(help="Lengths to time in tokens, separated by commas.")] = "1,10,50,200",
    rounds: Annotated[int, typer.Option(min=1, help="Largest number of runs of each variant at each length.")] = 30,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print size, accuracy and speed of the projection in every variant. Nothing else should run meanwhile."""
    json = report.json_file(json, overwrite=overwrite)
    lengths = _lengths(seq)
    ((measured, params),) = built_components([_NAME])
    recordings = list(read(_NAME, HELD_OUT).values())
    with output.temporary_folder() as folder:
        setting = Setting(measured, params.graph(next(iter(measured.graphs))), load().sessions.threads, folder)
        rows = [Row(variant) for variant in _build(setting)]
        _judge(rows, measured)
        _time(rows, {length: feed(measured.contract, recordings, [length]) for length in lengths}, rounds)
    found = {**report.circumstances(_NAME, setting.cores, rounds), "variants": [row.summary() for row in rows]}
    _print(found, lengths)
    if json:
        artifact.write_json(json, found)


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise UserError(f"--seq: {text!r} is not allowed: give numbers of tokens, as in 1,10,50")
    return lengths


def _build(setting: Setting) -> list[Variant]:
    """Make all variants; our float32 graph comes first."""
    builders: list[Builder] = [
        partial(variants.float32, setting),
        *variants.ours(setting),
        *variants.onnxruntime_tools(setting),
        *frameworks.pytorch(setting),
        *(frameworks.openvino(setting) if frameworks.openvino_installed() else []),
        partial(variants.ceiling, setting),
    ]
    made = []
    with progress("making the variants", len(builders)) as advance:
        for builder in builders:
            with quiet():
                made.append(builder())
            advance(1)
    return made


def _judge(rows: list[Row], measured: MeasuredComponent) -> None:
    """Compare every variant with PyTorch's recordings of all golden cases."""
    judged = [row for row in rows if row.variant.against is None]
    (output,) = measured.contract.outputs
    with progress("accuracy", len(judged) * len(golden.cases(measured.golden))) as advance:
        for case, ports in golden.read(measured.golden):
            expected = ports.pop(output.name)
            for row in judged:
                try:
                    agreement = compare(expected, row.variant.run(ports), NEAR_TIE)
                except ValueError as error:
                    raise UserError(f"{row.variant.name}: case {case}: {error}") from None
                row.sqnr_db.append(agreement.sqnr_db)
                row.top1.append(agreement.top1)
                row.tokens.append(expected[..., 0].size)
                advance(1)


def _time(rows: list[Row], inputs: dict[int, Feeds], rounds: int) -> None:
    """Run each variant next to what it is compared with, once a round, in alternating order, after a warm-up."""
    with progress("speed", len(inputs) * (rounds + _WARM_UP)) as advance:
        for seq, fed in inputs.items():
            for index in range(rounds + _WARM_UP):
                backwards = index % 2 == 0
                for row in rows[::-1] if backwards else rows:
                    if sum(row.own.get(seq, [])) > _ENOUGH:
                        continue
                    pair = [row.variant.against or rows[0].variant, row.variant]
                    taken = time_in_turn(pair, fed, backwards=backwards)
                    if index >= _WARM_UP:
                        for times, seconds in zip((row.baseline, row.own), taken, strict=True):
                            times.setdefault(seq, []).append(seconds)
                advance(1)


def _print(found: dict[str, Any], lengths: list[int]) -> None:
    """Print the machine and one Markdown table."""
    report.print_circumstances(
        found, f"speed: our float32 graph's time over the variant's, median of {found['rounds']} rounds"
    )
    table = [["variant", "MB", "SQNR dB", "top-1", *(f"{length} tok" for length in lengths)]]
    for row in found["variants"]:
        speeds = [number(row["speed"][str(length)]["speedup"], 2) for length in lengths]
        table.append(
            [
                row["variant"],
                number(row["mb"], 2),
                decibels(row["sqnr_db"]),
                number(row["top1"], 3),
                *speeds,
            ]
        )
    report.print_table(table)


if __name__ == "__main__":
    run_app(app)
