"""What Git keeps of a component's reports: for ``dvc metrics show``, for ``dvc plots``, and for the README's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omni.reports import LatencyReport, ParityReport
from qwen_omni_onnx.common.agreement import BFLOAT16, FLOAT, QUANTIZED, Verdict
from qwen_omni_onnx.common.errors import UserError
from validate.measured import MeasuredComponent, graph_bytes

__all__ = ["sqnr_rows", "summary"]

_PARITY = ("sqnr_db", "max_abs", "stft", "token_median_db", "token_p95_db", "kl", "top1", "top1_near_tie")
_SPLIT = ("sqnr_db", "token_median_db", "token_p95_db", "kl", "top1")
_LATENCY = ("float32_ms", "quantized_ms", "speedup", "share")


def summary(measured: MeasuredComponent, verdicts: list[Verdict]) -> dict[str, Any]:
    """Return the judged values by kind of graph, sizes, accuracy by check and by split, and times by graph and length.

    Reports that cannot be read are omitted: the gate reports them.
    """
    found: dict[str, Any] = {}
    for verdict in verdicts:
        key = f"{verdict.subject}_{verdict.metric}".lstrip("_")
        found.setdefault(verdict.kind, {})[key] = verdict.value
    found["mb"] = {kind: sum(map(graph_bytes, measured.files(kind).values())) / 1e6 for kind in measured.kinds}
    for measurement, read in (("parity", _parity), ("overfitting", _overfitting), ("latency", _latency)):
        try:
            figures = read(measured.name)
        except UserError:
            continue
        if figures:
            found[measurement] = figures
    return found


def sqnr_rows(name: str) -> list[list[str]]:
    """Return check, kind of graphs and golden case, with the SQNR in dB; nothing without a report: the gate tells."""
    try:
        checks = ParityReport.read(name).checks
    except UserError:
        return []
    return [
        [f"{check} {kind} {case.case}", f"{case.sqnr_db:.2f}"]
        for check, kinds in checks.items()
        for kind in (FLOAT, QUANTIZED, BFLOAT16)
        if kind in kinds
        for case in kinds[kind].cases
    ]


def _parity(name: str) -> dict[str, Any]:
    return {
        check: {kind: _picked(asdict(agreement), _PARITY) for kind, agreement in kinds.items()}
        for check, kinds in ParityReport.read(name).checks.items()
    }


def _overfitting(name: str) -> dict[str, Any]:
    return {
        check: {split: _picked(asdict(getattr(fit, split)), _SPLIT) for split in ("calibration", "held_out")}
        for check, fit in ParityReport.read(name).overfitting.items()
    }


def _latency(name: str) -> dict[str, Any]:
    return {
        stem: {str(entry.length): _picked(asdict(entry), _LATENCY) for entry in found.lengths}
        for stem, found in LatencyReport.read(name).graphs.items()
    }


def _picked(found: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: found[key] for key in keys if found[key] is not None}
