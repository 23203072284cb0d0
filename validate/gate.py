"""Judge what was measured: every limit of ``params.yaml`` against the reports. A missing or stale report is a miss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from omni import artifact
from omni.errors import Problem
from omni.params import GateParams
from omni.streamed import data_file
from validate.subject import FLOAT, QUANTIZED, Subject, require_current

__all__ = ["Verdict", "judge", "parity_verdicts", "summary"]

_QUIET = 0.2  # cores that other processes may use before a latency is doubtful
MEASUREMENTS = ("contract", "parity", "latency", "memory")


@dataclass(frozen=True)
class Verdict:
    """One limit and what was found. ``sense`` is ``>=`` or ``<=``; a value that is no finite number never passes.

    ``key`` is the metric's short name in ``dvc metrics show``; ``note`` is what a reader of a miss has to know.
    """

    graph: str
    key: str
    metric: str
    value: float | None
    sense: str
    limit: float
    unit: str = ""
    note: str = ""

    @property
    def ok(self) -> bool:
        if self.value is None or not math.isfinite(self.value):
            return False
        return self.value >= self.limit if self.sense == ">=" else self.value <= self.limit

    def __str__(self) -> str:
        value = "no number" if self.value is None else f"{self.value:.4g}"
        found = f"{value} {self.unit}".strip()
        return f"{self.graph}: {self.metric}: {found} (limit {self.sense} {self.limit:g}{self.note})"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def judge(subject: Subject, limits: GateParams) -> tuple[list[Verdict], list[str]]:
    """Return a verdict for every limit, and a sentence for everything else that is wrong with the reports."""
    wrong: list[str] = []
    reports: dict[str, dict[str, Any]] = {}
    for measurement in MEASUREMENTS:
        path = subject.report(measurement)
        try:
            reports[measurement] = artifact.read_json(path)
            require_current(subject, reports[measurement], path)
        except Problem as problem:
            wrong.append(str(problem))
    checks = reports.get("contract", {}).get("checks", [])
    wrong += [f"contract: {row['graph']}: {row['check']}: {row['detail']}" for row in checks if not row["ok"]]
    if "contract" in reports and not checks:
        wrong.append("contract: the report holds no check")
    verdicts: list[Verdict] = []
    for measurement, read in (("parity", _parity), ("latency", _latency), ("memory", _memory)):
        if measurement in reports:
            try:
                verdicts += read(reports[measurement], limits)
            except (KeyError, TypeError, AttributeError) as error:
                wrong.append(f"{subject.report(measurement)}: is not what this version writes ({error}); run dvc repro")
    graph = subject.graphs.get(QUANTIZED)
    if graph is not None and limits.quantized_share is not None:
        quantized, floating = (
            path.stat().st_size + data_file(path).stat().st_size for path in (graph, subject.graphs[FLOAT])
        )
        metric = f"graph and data ({quantized / 1e6:.2f} MB), of the float32 ones"
        verdicts.append(Verdict(QUANTIZED, "share", metric, quantized / floating, "<=", limits.quantized_share))
    return verdicts, wrong


def summary(verdicts: list[Verdict]) -> dict[str, Any]:
    """The few numbers that ``dvc metrics show`` prints."""
    found: dict[str, Any] = {}
    for verdict in verdicts:
        found.setdefault(verdict.graph, {})[verdict.key] = verdict.value
    return found


def parity_verdicts(graphs: dict[str, Any], limits: GateParams) -> list[Verdict]:
    """Judge parity alone: what a user of a published folder can repeat."""
    judged = [
        (FLOAT, "sqnr_db", "SQNR, worst case", ">=", limits.float_sqnr_db, "dB"),
        (FLOAT, "max_abs", "largest difference", "<=", limits.float_max_abs, ""),
    ]
    if QUANTIZED in graphs:
        judged += [
            (QUANTIZED, "sqnr_db", "SQNR, worst case", ">=", limits.quantized_sqnr_db, "dB"),
            (QUANTIZED, "top1", "top-1 agreement", ">=", limits.quantized_top1, ""),
        ]
    return [
        Verdict(graph, key, metric, graphs[graph][key], sense, limit, unit)
        for graph, key, metric, sense, limit, unit in judged
        if limit is not None
    ]


def _parity(report: dict[str, Any], limits: GateParams) -> list[Verdict]:
    return parity_verdicts(report["graphs"], limits)


def _latency(report: dict[str, Any], limits: GateParams) -> Iterator[Verdict]:
    if limits.speedup is None:
        return
    measured = {entry["length"]: entry["speedup_low"] for entry in report["lengths"]}
    has = report["machine"]["instructions"].split()
    kind = next((name for name in limits.speedup if name in has), "other")
    busy = report["cores_busy_with_other_processes"]
    note = f"; other processes kept {busy:g} cores busy meanwhile" if busy > _QUIET else ""
    for length, limit in limits.speedup[kind].items():
        metric = f"speed-up at {report['axis']} {length}, lower end ({kind})"
        yield Verdict(QUANTIZED, f"speedup_{length}", metric, measured.get(length), ">=", limit, "x", note)


def _memory(report: dict[str, Any], limits: GateParams) -> Iterator[Verdict]:
    mib = 2**20
    allowed = limits.build_memory_mb + limits.build_memory_tensors * report["largest_tensor_bytes"] / mib
    for stage, built in report["build"].items():
        graph = {"export": FLOAT, "quantize": QUANTIZED}[stage]
        above = (built["peak_bytes"] - built["libraries_bytes"]) / mib
        same = float(built["rebuilt_the_same"])
        yield Verdict(graph, "build_mib", f"memory of {stage} above the libraries'", above, "<=", allowed, "MiB")
        yield Verdict(graph, "same_bytes", f"second {stage} gives the same bytes", same, ">=", 1)
    for graph, session in report["session"].items():
        above = (session["peak_bytes"] - session["data_bytes"]) / mib
        metric = "memory of a process that runs it, above its data"
        yield Verdict(graph, "run_mib", metric, above, "<=", limits.session_memory_mb, "MiB")
