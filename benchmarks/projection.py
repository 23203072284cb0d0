"""Compare the projection with its peers: ``python -m benchmarks.projection``, after ``make repro``.

All variants live in one process, with the same number of threads. Accuracy is judged on the golden cases, which no
calibration has seen. Speed is the median over rounds of a ratio of two runs next to each other, our float32 graph's
and the variant's: what slows the machine down for a while slows both. Runs follow each other without rest, because
waking from one costs a short run more than it takes, and some runtimes more than others. So every run finds others'
weights in the caches and its own in memory, as in a model that does other things between two runs.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import frameworks, variants
from benchmarks.variants import Builder, Setting, Variant
from export.quiet import quiet
from omni import artifact, golden
from omni.errors import Problem, run_command
from omni.inputs import held_out
from omni.metrics import EXACT_DB, compare
from omni.params import load
from omni.resources import machine, progress
from validate.latency import speedup_interval
from validate.subject import subjects

__all__ = ["main"]

_WARM_UP = 3
_ENOUGH = 3.0  # seconds; a variant that took longer at one length sits the other rounds out: bf16 where it is emulated
_NAME = "projection"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Row:
    """What was found of one variant; times in seconds, by length, one for each round."""

    variant: Variant
    sqnr_db: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    baseline: dict[int, list[float]] = field(default_factory=dict)
    own: dict[int, list[float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the worst SQNR, top-1 over all tokens, and by length the speed with its 95 % interval."""
        speed = {}
        for seq, times in self.own.items():
            median, low, high = speedup_interval(self.baseline[seq], times)
            ms = float(np.median(times) * 1e3)
            speed[str(seq)] = {"speedup": median, "low": low, "high": high, "ms": ms, "rounds": len(times)}
        return {
            "variant": self.variant.name,
            "mb": self.variant.nbytes / 1e6 or None,
            "sqnr_db": min(self.sqnr_db, default=None),
            "top1": float(np.average(self.top1, weights=self.tokens)) if self.tokens else None,
            "speed": speed,
        }


@app.command()
def main(
    seq: Annotated[str, typer.Option(help="lengths to time, in tokens")] = "1,10,50,200",
    rounds: Annotated[int, typer.Option(min=1, help="runs of each variant at each length")] = 30,
    json: Annotated[Path | None, typer.Option(help="also write everything that was measured to this file")] = None,
) -> None:
    """Print size, accuracy and speed of the projection in every variant. Nothing else should run meanwhile."""
    lengths = _lengths(seq)
    ((subject, params),) = subjects([_NAME])
    width = int(subject.contract.inputs[0].shape[-1])
    weights = artifact.read_json(Path("models/source") / _NAME / "source.json")["kind"]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(subject, params, load().sessions.threads, Path(folder))
        rows = [Row(variant) for variant in _build(setting)]
        _judge(rows, subject.golden, params.gates.near_tie)
        _time(rows, [held_out(params.inputs, width, 1, length) for length in lengths], rounds)
    found = {
        "machine": machine(),
        "versions": _versions(),
        "threads": setting.cores,
        "rounds": rounds,
        "weights": weights,
        "variants": [row.summary() for row in rows],
    }
    _print(found, lengths)
    if json:
        artifact.write_json(json, found)


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise Problem(f"--seq: {text!r} is not allowed: give numbers of tokens, as in 1,10,50")
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


def _judge(rows: list[Row], golden_cases: Path, near_tie: float) -> None:
    """Compare every variant with PyTorch's recordings of all golden cases."""
    judged = [row for row in rows if row.variant.against is None]
    with progress("accuracy", len(judged) * len(golden.cases(golden_cases))) as advance:
        for case, ports in golden.read(golden_cases):
            expected = ports["audio_logits"]
            for row in judged:
                try:
                    agreement = compare(expected, row.variant.run(ports["hidden_states"]), near_tie)
                except ValueError as error:
                    raise Problem(f"{row.variant.name}: case {case}: {error}") from None
                row.sqnr_db.append(agreement.sqnr_db)
                row.top1.append(agreement.top1)
                row.tokens.append(expected[..., 0].size)
                advance(1)


def _time(rows: list[Row], inputs: list[np.ndarray], rounds: int) -> None:
    """Run each variant next to what it is compared with, once a round, in alternating order, after a warm-up."""
    with progress("speed", len(inputs) * (rounds + _WARM_UP)) as advance:
        for hidden_states in inputs:
            seq = hidden_states.shape[1]
            for number in range(rounds + _WARM_UP):
                step = 1 if number % 2 else -1
                for row in rows[::step]:
                    if sum(row.own.get(seq, [])) > _ENOUGH:
                        continue
                    pair = [(row.variant.against or rows[0].variant, row.baseline), (row.variant, row.own)]
                    for variant, times in pair[::step]:
                        taken = _seconds(variant, hidden_states)
                        if number >= _WARM_UP:
                            times.setdefault(seq, []).append(taken)
                advance(1)


def _seconds(variant: Variant, hidden_states: np.ndarray) -> float:
    start = time.perf_counter()
    variant.run(hidden_states)
    end = time.perf_counter()
    while time.perf_counter() < end + variant.spins:
        pass  # not asleep: the next run would pay for the waking
    return end - start


def _versions() -> dict[str, str]:
    names = ["torch", "transformers", *(["openvino", "nncf"] if frameworks.openvino_installed() else [])]
    return {name: metadata.version(name) for name in names}


def _print(found: dict[str, Any], lengths: list[int]) -> None:
    """Print the machine and one Markdown table."""
    facts = {**found["machine"], **found["versions"]}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(
        f"{found['threads']} threads; speed: our float32 graph's time over the variant's, median of {found['rounds']}"
    )
    if found["weights"] == "synthetic":
        print("weights: synthetic; accuracy ranks the methods, it is not that of the real checkpoint")
    if not frameworks.openvino_installed():
        print("OpenVINO and NNCF: not installed (pip install '.[bench]')")
    table = [["variant", "MB", "SQNR dB", "top-1", *(f"{length} tok" for length in lengths)]]
    for row in found["variants"]:
        sqnr = "exact" if row["sqnr_db"] == EXACT_DB else _number(row["sqnr_db"], 1)
        speeds = [_number(row["speed"][str(length)]["speedup"], 2) for length in lengths]
        table.append([row["variant"], _number(row["mb"], 2), sqnr, _number(row["top1"], 3), *speeds])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])])
    print()
    for first, *others in table:
        print(f"| {' | '.join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])} |")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    run_command(app)
