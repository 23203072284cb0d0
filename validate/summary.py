"""The few numbers of a component that ``dvc metrics show`` prints, and that the README's table is written from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni.reports import checks_of, parts_of
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from validate.gate import Verdict
from validate.subject import Subject, graph_bytes

__all__ = ["summary"]

_PARITY = ("sqnr_db", "max_abs", "stft", "token_median_db", "token_p95_db", "kl", "top1", "top1_near_tie")
_LATENCY = ("float32_ms", "quantized_ms", "speedup", "share")
_ONLY = "all"  # the check, or the graph, of a component with one


def summary(subject: Subject, verdicts: list[Verdict]) -> dict[str, Any]:
    """Return the judged values by kind of graph and short name; sizes; accuracy by check; times by graph and length.

    Reports that cannot be read are left out: the gate has said so.
    """
    found: dict[str, Any] = {}
    for verdict in verdicts:
        found.setdefault(verdict.graph, {})[verdict.key] = verdict.value
    sizes = {kind: sum(map(graph_bytes, subject.of_kind(kind).values())) / 1e6 for kind in subject.kinds}
    found["mb"] = sizes
    for measurement, read in (("parity", _parity), ("latency", _latency)):
        try:
            found[measurement] = read(artifact.read_json(subject.report(measurement)))
        except (UserError, KeyError, TypeError, AttributeError):
            continue
    return found


def _parity(report: dict[str, Any]) -> dict[str, Any]:
    return {
        check or _ONLY: {kind: _picked(measured, _PARITY) for kind, measured in kinds.items()}
        for check, kinds in checks_of(report).items()
    }


def _latency(report: dict[str, Any]) -> dict[str, Any]:
    return {
        graph or _ONLY: {str(entry["length"]): _picked(entry, _LATENCY) for entry in measured["lengths"]}
        for graph, measured in parts_of(report).items()
    }


def _picked(found: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: found[key] for key in keys if key in found}
