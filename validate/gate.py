"""Judge what was measured: every limit of ``params.yaml`` against the reports. A missing or stale report is a miss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from omni import artifact
from omni.agreement import kept
from omni.errors import Problem
from omni.params import GateParams
from omni.reports import checks_of, parts_of
from omni.streamed import data_file
from validate.subject import FLOAT, QUANTIZED, Subject, require_current

__all__ = ["Verdict", "judge", "parity_verdicts", "sizes"]

_QUIET = 0.2  # cores that other processes may use before a latency is doubtful
_BESIDE = (  # how a quantized graph compares with PyTorch in bfloat16, by the names that the limits have
    ("below_bfloat16_median_db", "SQNR, median token, below", "dB"),
    ("below_bfloat16_p95_db", "SQNR that 95 % of tokens reach, below", "dB"),
    ("kl_over_bfloat16", "KL divergence, times", "x"),
    ("top1_below_bfloat16", "top-1 agreement, strict, below", ""),
)
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
        return kept(self.value, self.sense, self.limit)

    def __str__(self) -> str:
        value = "no number" if self.value is None else f"{self.value:.4g}"
        found = f"{value} {self.unit}".strip()
        return f"{self.graph}: {self.metric}: {found} (limit {self.sense} {self.limit:g}{self.note})"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def judge(subject: Subject, gates: GateParams) -> tuple[list[Verdict], list[str]]:
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
                verdicts += read(reports[measurement], gates)
            except (KeyError, TypeError, AttributeError) as error:
                wrong.append(f"{subject.report(measurement)}: is not what this version writes ({error}); run dvc repro")
    if QUANTIZED in subject.kinds:
        verdicts += sizes(subject, gates)
    return verdicts, wrong


def sizes(subject: Subject, gates: GateParams) -> Iterator[Verdict]:
    """Judge what the quantized graphs take on disk; those that stay float32 count with them."""
    quantized, floating = (
        sum(path.stat().st_size + data_file(path).stat().st_size for path in subject.of_kind(kind).values())
        for kind in (QUANTIZED, FLOAT)
    )
    what = "graph and data" if len(subject.each) == 1 else "graphs and data"
    if gates.quantized_share is not None:
        metric = f"{what} ({quantized / 1e6:.2f} MB), of the float32 ones"
        yield Verdict(QUANTIZED, "share", metric, quantized / floating, "<=", gates.quantized_share)
    if gates.quantized_mb is not None:
        yield Verdict(QUANTIZED, "mb", what, quantized / 1e6, "<=", gates.quantized_mb, "MB")


def parity_verdicts(checks: dict[str, dict[str, Any]], gates: GateParams) -> Iterator[Verdict]:
    """Judge parity alone, check by check: what a user of a published folder can repeat."""
    for check, graphs in checks.items():
        limits, where = gates.of(check), f"{check}: " if check else ""
        judged = [
            (FLOAT, "sqnr_db", "SQNR, worst case", ">=", limits.float_sqnr_db, "dB"),
            (FLOAT, "max_abs", "largest difference", "<=", limits.float_max_abs, ""),
            (FLOAT, "stft", "multi-resolution STFT distance", "<=", limits.float_stft, ""),
            (FLOAT, "top1", "top-1 agreement, strict", ">=", limits.float_top1, ""),
        ]
        if QUANTIZED in graphs:
            judged += [
                (QUANTIZED, "sqnr_db", "SQNR, worst case", ">=", limits.quantized_sqnr_db, "dB"),
                (QUANTIZED, "stft", "multi-resolution STFT distance", "<=", limits.quantized_stft, ""),
                (QUANTIZED, "top1", "top-1 agreement, strict", ">=", limits.quantized_top1, ""),
                (
                    QUANTIZED,
                    "top1_near_tie",
                    "top-1 agreement, near ties counted as equal",
                    ">=",
                    limits.quantized_near_tie,
                    "",
                ),
                (QUANTIZED, "kl", "KL divergence", "<=", limits.quantized_kl, "nats"),
                *(
                    (QUANTIZED, key, f"{metric} bfloat16's", "<=", getattr(limits, key), unit)
                    for key, metric, unit in _BESIDE
                ),
            ]
        for graph, key, metric, sense, limit, unit in judged:
            if limit is not None:
                short = f"{check}_{key}" if check else key
                yield Verdict(graph, short, where + metric, graphs[graph].get(key), sense, limit, unit)


def _parity(report: dict[str, Any], gates: GateParams) -> Iterator[Verdict]:
    return parity_verdicts(checks_of(report), gates)


def _latency(report: dict[str, Any], gates: GateParams) -> Iterator[Verdict]:
    for part, found in parts_of(report).items():
        speedup = gates.of(part).speedup
        if speedup is None:
            continue
        measured = {entry["length"]: entry["speedup_low"] for entry in found["lengths"]}
        has = found["machine"]["instructions"].split()
        kind = next((name for name in speedup if name in has), "other")
        busy = found["cores_busy_with_other_processes"]
        note = f"; other processes kept {busy:g} cores busy meanwhile" if busy > _QUIET else ""
        where, short = (f"{part}: ", f"{part}_speedup") if part else ("", "speedup")
        for length, limit in speedup[kind].items():
            metric = f"{where}speed-up at {found['axis']} {length}, lower end ({kind})"
            yield Verdict(QUANTIZED, f"{short}_{length}", metric, measured.get(length), ">=", limit, "x", note)


def _memory(report: dict[str, Any], gates: GateParams) -> Iterator[Verdict]:
    mib = 2**20
    allowed = gates.build_memory_mb + gates.build_memory_tensors * report["largest_tensor_bytes"] / mib
    for stage, built in report["build"].items():
        graph = {"export": FLOAT, "quantize": QUANTIZED}[stage]
        above = (built["peak_bytes"] - built["libraries_bytes"]) / mib
        yield Verdict(graph, "build_mib", f"memory of {stage} above the libraries'", above, "<=", allowed, "MiB")
        if stage == "quantize":
            same = float(built["rebuilt_the_same"])
            yield Verdict(graph, "same_bytes", f"second {stage} gives the same bytes", same, ">=", 1)
    for name, session in report["session"].items():
        part, _, graph = name.rpartition(" ")
        limit = gates.of(part).session_memory_mb
        if limit is None:
            continue
        above = (session["peak_bytes"] - session["data_bytes"]) / mib
        where, short = (f"{part}: ", f"{part}_run_mib") if part else ("", "run_mib")
        metric = f"{where}memory of a process that runs it, above its data"
        yield Verdict(graph, short, metric, above, "<=", limit, "MiB")
