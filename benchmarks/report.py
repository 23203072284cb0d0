"""Where and of what a benchmark was made, and its table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import frameworks
from omni.resources import machine
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.metrics import EXACT_DB

__all__ = ["circumstances", "decibels", "number", "print_circumstances", "print_table"]


def circumstances(component: str, threads: int, rounds: int, *, openvino: bool = True) -> dict[str, Any]:
    """Return machine, versions, threads, rounds, and the kind of weights under ``models/``.

    Args:
        component: that is measured.
        threads: of each way.
        rounds: at most.
        openvino: whether OpenVINO runs too, where it is installed.
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
    """Print what :func:`circumstances` returned, and what a reader of the table has to know."""
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


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def decibels(value: float | None) -> str:
    return "exact" if value == EXACT_DB else number(value, 1)
