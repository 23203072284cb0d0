"""Report measurements: their circumstances, Markdown tables, and a JSON file of all that was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import frameworks
from omni.resources import machine
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.metrics import EXACT_DB

__all__ = [
    "HELD_OUT_SPEECH",
    "PUBLISHED",
    "JsonFile",
    "Models",
    "Overwrite",
    "Speech",
    "circumstances",
    "decibels",
    "json_file",
    "number",
    "print_circumstances",
    "print_shares",
    "print_table",
    "speed_cells",
]

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="File that also gets everything that was measured.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Let --json replace a FILE that is there already.")]
Models = Annotated[Path, typer.Option(help="Folder with published components.")]
Speech = Annotated[Path, typer.Option(help="Folder of the clips that the sound is made of.")]
PUBLISHED, HELD_OUT_SPEECH = Path("models/published"), Path("data/speech/held_out")
_TOP = 8  # operator types that are printed


def json_file(path: Path | None, *, overwrite: bool, inputs: Iterable[Path] = ()) -> Path | None:
    """Return the file to write as an absolute path; refuse it before minutes of measuring.

    Args:
        path: Value of ``--json``.
        overwrite: Value of ``--overwrite``.
        inputs: Files and folders that the benchmark reads beside ``params.yaml`` and ``models``.

    Raises:
        UserError: See :func:`qwen_omni_onnx.common.output.require_writable`.
    """
    if path is None:
        return None
    output.require_writable(path, inputs=[Path("params.yaml"), Path("models"), *inputs], overwrite=overwrite)
    return path.resolve()


def circumstances(component: str, threads: int, rounds: int, *, openvino: bool = True) -> dict[str, Any]:
    """Return machine, versions, threads, rounds, and the kind of weights under ``models/``.

    Args:
        component: Name of the component that is measured.
        threads: Number of threads of each contender.
        rounds: Largest number of rounds.
        openvino: Whether OpenVINO runs too, where it is installed.
    """
    names = ["torch", "transformers"]
    if openvino and frameworks.openvino_installed():
        names += ["openvino", "nncf"]
    return {
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in names},
        "threads": threads,
        "rounds": rounds,
        "weights": artifact.read_json(Path("models/source") / component / "source.json")["kind"],
    }


def print_circumstances(found: Mapping[str, Any], speed_is: str, *, openvino: bool = True) -> None:
    """Print what :func:`circumstances` returned, and what a reader of the table has to know.

    Args:
        found: Measurements, with the circumstances among them.
        speed_is: Definition of speed in the tables.
        openvino: Whether OpenVINO would run if it were installed.
    """
    facts = {**found["machine"], **found["versions"]}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{found['threads']} threads; {speed_is}")
    if found["weights"] == "synthetic":
        print("weights: synthetic; accuracy ranks the methods, it is not that of the real checkpoint")
    if "avx512_bf16" not in found["machine"]["instructions"].split():  # those with AMX have it too
        print("bf16 is emulated on this processor, which has no instructions for it")
    if openvino and not frameworks.openvino_installed():
        print("OpenVINO and NNCF: not installed (pip install '.[bench]')")


def print_table(table: list[list[str]]) -> None:
    """Print Markdown; the first row is the head, the first column is text and the others are numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    line = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    print()
    for first, *others in [table[0], line, *table[1:]]:
        print(f"| {' | '.join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])} |")


def print_shares(of: str, shares: Mapping[str, float]) -> None:
    """Print the operators that take the largest shares of a graph's time.

    Args:
        of: Name of the graph.
        shares: Shares by operator, the largest first.
    """
    named = [f"{kind} {share:.0%}" for kind, share in list(shares.items())[:_TOP]]
    print(f"time of {of}, by operator: {', '.join(named)}")


def speed_cells(speeds: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return two cells for each baseline: how many times as fast, and the 95 % interval."""
    cells = []
    for beside in speeds.values():
        cells += [number(beside["speedup"], 2), f"{beside['low']:.2f} to {beside['high']:.2f}"]
    return cells


def number(value: float | None, digits: int) -> str:
    """Return a number with so many decimals; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def decibels(value: float | None) -> str:
    """Return an SQNR with one decimal; ``exact`` for equal bits, nothing for None."""
    return "exact" if value == EXACT_DB else number(value, 1)
