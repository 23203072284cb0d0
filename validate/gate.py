"""Judge what was measured: every limit of ``params.yaml`` against the reports. A missing or stale report is a miss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from omni.params import GateParams
from omni.reports import checks_of, parts_of
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import kept
from qwen_omni_onnx.common.errors import UserError
from validate.patience import QUIET
from validate.subject import FLOAT, QUANTIZED, Subject, graph_bytes, require_current

__all__ = ["Verdict", "judge", "latency_verdicts", "parity_verdicts", "sizes"]

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
        except UserError as problem:
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
    quantized, floating = (sum(map(graph_bytes, subject.of_kind(kind).values())) for kind in (QUANTIZED, FLOAT))
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
            (FLOAT, "token_median_db", "SQNR, median token", ">=", limits.float_median_db, "dB"),
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


def latency_verdicts(found: dict[str, Any], limit: float, part: str = "") -> Iterator[Verdict]:
    """Judge one graph's latency by this machine's own ceiling, and against float32 at the length that it works at.

    Where the ceiling leaves nothing to gain, being slower than float32 is no miss, but is said.

    Args:
        found: What ``validate.latency`` measured of it.
        limit: Least share of the ceiling, at every length.
        part: The graph's name in a component that has several.
    """
    where, short = (f"{part}: ", f"{part}_") if part else ("", "")
    at = {entry["length"]: entry for entry in found["lengths"]}
    for length, entry in at.items():
        metric = (
            f"{where}share of this machine's ceiling, {entry['ceiling']:.2f} x float32, at {found['axis']} {length}"
        )
        share = Verdict(QUANTIZED, f"{short}share_{length}", metric, entry["share"], ">=", limit)
        yield share if share.ok else replace(share, note=_busy(entry))
    length, entry = found["works_at"], at[found["works_at"]]
    least = min(1.0, entry["ceiling"] * limit)
    metric = f"{where}speed-up at {found['axis']} {length}"
    speedup = Verdict(QUANTIZED, f"{short}speedup_{length}", metric, entry["speedup"], ">=", least, "x")
    if not speedup.ok:
        speedup = replace(speedup, note=_busy(entry))
    elif entry["speedup"] < 1:
        note = f"; this machine's kernels gain too little here: {found['graphs'][FLOAT]} is the faster graph"
        speedup = replace(speedup, note=note)
    yield speedup


def _latency(report: dict[str, Any], gates: GateParams) -> Iterator[Verdict]:
    for part, found in parts_of(report).items():
        limit = gates.of(part).latency_share
        if limit is not None and QUANTIZED in found["graphs"]:
            yield from latency_verdicts(found, limit, part)


def _busy(entry: dict[str, Any]) -> str:
    cores, attempts = entry["cores_busy_with_other_processes"], entry["attempts"]
    if cores <= QUIET:
        return ""
    through = f"{attempts} attempts" if attempts > 1 else "1 attempt"
    return (
        f"; other processes kept {cores:g} cores busy through {through} in {entry['seconds']:g} s: "
        "run it again on a quieter machine"
    )


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
