"""Judges the reports by the limits in ``params.yaml``; a missing or stale report fails the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from omni.params import CheckLimits, Limits
from omni.reports import (
    ContractReport,
    GraphLatency,
    LatencyReport,
    LengthLatency,
    MemoryReport,
    ParityReport,
    Report,
)
from omni.segments import weight_bytes
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED, CheckAgreement, Verdict
from qwen_omni_onnx.common.errors import UserError
from validate import overfitting
from validate.measured import MeasuredComponent, graph_bytes
from validate.patience import QUIET

__all__ = ["judge", "latency_verdicts", "parity_verdicts", "sizes", "warnings"]

ReportType = TypeVar("ReportType", bound=Report)
_MIB = 2**20
_ABSOLUTE = (  # limit, kind of graphs, metric, its label, comparison, unit
    ("float_sqnr_db", FLOAT, "sqnr_db", "SQNR, worst case", ">=", "dB"),
    ("float_median_db", FLOAT, "token_median_db", "SQNR, median token", ">=", "dB"),
    ("float_max_abs", FLOAT, "max_abs", "largest difference", "<=", ""),
    ("float_stft", FLOAT, "stft", "multi-resolution STFT distance", "<=", ""),
    ("float_top1", FLOAT, "top1", "top-1 agreement, strict", ">=", ""),
    ("quantized_sqnr_db", QUANTIZED, "sqnr_db", "SQNR, worst case", ">=", "dB"),
    ("quantized_stft", QUANTIZED, "stft", "multi-resolution STFT distance", "<=", ""),
    ("quantized_top1", QUANTIZED, "top1", "top-1 agreement, strict", ">=", ""),
    ("quantized_near_tie", QUANTIZED, "top1_near_tie", "top-1 agreement, near ties counted as equal", ">=", ""),
    ("quantized_kl", QUANTIZED, "kl", "KL divergence", "<=", "nats"),
)
_RELATIVE = (  # limits on quantized graphs relative to PyTorch in bfloat16, which are also the metrics' names
    ("below_bfloat16_median_db", "SQNR, median token, below bfloat16's", "dB"),
    ("below_bfloat16_p95_db", "SQNR that 95 % of tokens reach, below bfloat16's", "dB"),
    ("kl_over_bfloat16", "KL divergence, times bfloat16's", "x"),
    ("top1_below_bfloat16", "top-1 agreement, strict, below bfloat16's", ""),
)


def judge(measured: MeasuredComponent, limits: Limits) -> tuple[list[Verdict], list[str]]:
    """Return a verdict for every limit, and a message for every other fault of the reports."""
    wrong: list[str] = []

    def current(kind: type[ReportType]) -> ReportType | None:
        try:
            report = kind.read(measured.name)
            report.require_made_from(measured.name, measured.fingerprints())
        except UserError as problem:
            wrong.append(str(problem))
            return None
        return report

    contract, parity = current(ContractReport), current(ParityReport)
    latency, memory = current(LatencyReport), current(MemoryReport)
    verdicts: list[Verdict] = []
    if contract:
        wrong += [f"contract: {row.graph}: {row.check}: {row.detail}" for row in contract.checks if not row.ok]
        wrong += [] if contract.checks else ["contract: the report holds no check"]
    if parity:
        verdicts += parity_verdicts(parity.checks, limits)
        idle = limits.idle(parity.checks, measured.graphs)
        wrong += [f"params.yaml: {measured.name}.gates.{key}: there is none of that name to judge" for key in idle]
    if latency:
        verdicts += _latency(latency, limits)
    if memory:
        verdicts += _memory(memory, limits)
    if QUANTIZED in measured.kinds:
        verdicts += sizes(measured, limits)
    return verdicts, wrong


def warnings(measured: MeasuredComponent) -> list[str]:
    """Return what a reader should know and no limit judges; nothing without a report, which :func:`judge` misses."""
    try:
        return overfitting.warnings(ParityReport.read(measured.name).overfitting)
    except UserError:
        return []


def sizes(measured: MeasuredComponent, limits: Limits) -> Iterator[Verdict]:
    """Judge the size on disk of the quantized graphs, including graphs that stay float32.

    It is compared with the float32 graphs' size in float32, however they are stored.
    """
    quantized = sum(map(graph_bytes, measured.files(QUANTIZED).values()))
    floating = sum(path.stat().st_size + weight_bytes(path) for path in measured.files(FLOAT).values())
    subject = "graph and data" if len(measured.graphs) == 1 else "graphs and data"
    if limits.quantized_share is not None:
        label = f"{subject} ({quantized / 1e6:.2f} MB), of the float32 ones"
        yield Verdict(QUANTIZED, "", "share", label, quantized / floating, "<=", limits.quantized_share)


def parity_verdicts(
    checks: Mapping[str, Mapping[str, CheckAgreement]], limits: Limits, *, floating: bool = True
) -> Iterator[Verdict]:
    """Judge parity alone, check by check, which a user of a published folder can repeat.

    Args:
        checks: Agreement by check and by kind of graphs.
        limits: Limits of the component.
        floating: Whether there are float32 graphs: a limit on them that nothing was measured for is then missed.
    """
    for check, kinds in checks.items():
        yield from _check_verdicts(check, kinds, limits.check(check), floating)


def _check_verdicts(
    check: str, kinds: Mapping[str, CheckAgreement], limits: CheckLimits, floating: bool
) -> Iterator[Verdict]:
    compared = tuple((key, QUANTIZED, key, label, "<=", unit) for key, label, unit in _RELATIVE)
    for name, kind, metric, label, comparison, unit in (*_ABSOLUTE, *compared):
        limit = getattr(limits, name)
        if limit is not None and (kind in kinds or (kind == FLOAT and floating)):
            value = getattr(kinds[kind], metric) if kind in kinds else None
            yield Verdict(kind, check, metric, label, value, comparison, limit, unit)


def latency_verdicts(stem: str, found: GraphLatency, limit: float) -> Iterator[Verdict]:
    """Judge one graph's latency by this machine's ceiling, and its speed-up at the component's typical length.

    Where the ceiling is below 1, a graph that is slower than float32 passes, with a note.

    Args:
        stem: File stem of the graph.
        found: Measurements by ``validate.latency``.
        limit: Lower limit on the share of the ceiling, at every length.
    """
    by_length = {entry.length: entry for entry in found.lengths}
    for length, entry in by_length.items():
        label = f"share of this machine's ceiling, {entry.ceiling:.2f} x float32, at {found.axis} {length}"
        share = Verdict(QUANTIZED, stem, f"share_{length}", label, entry.share, ">=", limit)
        yield share if share.ok else replace(share, note=_busy(entry))
    length, entry = found.works_at, by_length[found.works_at]
    least = min(1.0, (entry.ceiling or 1.0) * limit)
    label = f"speed-up at {found.axis} {length}"
    speedup = Verdict(QUANTIZED, stem, f"speedup_{length}", label, entry.speedup, ">=", least, "x")
    if not speedup.ok:
        speedup = replace(speedup, note=_busy(entry))
    elif entry.speedup is not None and entry.speedup < 1:
        note = f"; this machine's kernels gain too little here: {found.files[FLOAT]} is the faster graph"
        speedup = replace(speedup, note=note)
    yield speedup


def _latency(report: LatencyReport, limits: Limits) -> Iterator[Verdict]:
    for stem, found in report.graphs.items():
        limit = limits.graph(stem).latency_share
        if limit is not None and QUANTIZED in found.files:
            yield from latency_verdicts(stem, found, limit)


def _busy(entry: LengthLatency) -> str:
    cores, attempts = entry.cores_busy_with_other_processes, entry.attempts
    if cores <= QUIET:
        return ""
    through = f"{attempts} attempts" if attempts > 1 else "1 attempt"
    return (
        f"; other processes kept {cores:g} cores busy through {through} in {entry.seconds:g} s: "
        "run it again on a quieter machine"
    )


def _memory(report: MemoryReport, limits: Limits) -> Iterator[Verdict]:
    allowed = limits.build_memory_mb + limits.build_memory_tensors * report.largest_tensor_bytes / _MIB
    for stage, built in report.build.items():
        kind = {"export": FLOAT, "quantize": QUANTIZED}[stage]
        above = (built.peak_bytes - built.libraries_bytes) / _MIB
        yield Verdict(kind, "", "build_mib", f"memory of {stage} above the libraries'", above, "<=", allowed, "MiB")
        if built.rebuilt_the_same is not None:
            same = float(built.rebuilt_the_same)
            yield Verdict(kind, "", "same_bytes", f"second {stage} gives the same bytes", same, ">=", 1)
    for stem, sessions in report.graphs.items():
        limit = limits.graph(stem)
        if limit.session_memory_mb is None:
            continue
        for kind, session in sessions.items():
            above = (session.peak_bytes - session.data_bytes) / _MIB
            allowed = limit.session_memory_mb + limit.session_memory_share * session.data_bytes / _MIB
            label = "memory of a process that runs it, above its data"
            yield Verdict(kind, stem, "run_mib", label, above, "<=", allowed, "MiB")
