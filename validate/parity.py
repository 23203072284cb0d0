"""Does the graph compute what PyTorch computed? All graphs against the golden cases."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np

from omni import golden
from omni.errors import Problem
from omni.metrics import compare, kl_divergence, stft_distance
from omni.resources import progress
from omni.session import open_session, run
from validate.subject import Subject

__all__ = ["NEAR_TIE", "measure"]

NEAR_TIE = 0.02  # of a row's standard deviation: two candidates closer than that count as equal


def measure(subject: Subject, threads: int) -> dict[str, dict[str, Any]]:
    """Return ``{check: {kind: what was found}}``; the only graph of a component has one check, named "".

    What was found: every case's agreement, the worst of each metric, and over all rows of an output top-1 and the KL
    divergence.

    Raises:
        Problem: an output is missing, of another shape, NaN or infinite, or lengths differ; the message names graph
            and case.
    """
    if not subject.component.runtime:
        return {"": {kind: _graph(subject, kind, threads) for kind in subject.graphs}}
    runtime = importlib.import_module(subject.component.runtime)
    checks: dict[str, dict[str, Any]] = {check: {} for check in runtime.CHECKS}
    for kind in subject.kinds:
        for check, found in _together(subject, runtime, kind, threads).items():
            checks[check][kind] = found
    return checks


def _graph(subject: Subject, kind: str, threads: int) -> dict[str, Any]:
    session = open_session(subject.graphs[kind], threads=threads)
    signal, *lengths = (port.name for port in subject.contract.outputs)
    found = _Found()
    for case, ports in golden.read(subject.golden):
        try:
            result = run(session, {port.name: ports[port.name] for port in subject.contract.inputs})
            found.add(case, ports[signal], result[signal])
            wrong = [name for name in lengths if not np.array_equal(ports[name], result[name])]
        except KeyError as error:
            raise Problem(f"{subject.golden}: case {case} has no {error}; record the golden cases again") from None
        except ValueError as error:
            raise Problem(f"{subject.graphs[kind].name}: case {case}: {signal}: {error}") from None
        if wrong:
            given, expected = result[wrong[0]].tolist(), ports[wrong[0]].tolist()
            raise Problem(f"{subject.graphs[kind].name}: case {case}: {wrong[0]}: {given}, expected {expected}")
    return found.summary()


def _together(subject: Subject, runtime: ModuleType, kind: str, threads: int) -> dict[str, dict[str, Any]]:
    """Check the graphs of one kind as their run-time uses them."""
    model = runtime.open_graphs(subject.of_kind(kind), subject.companions, threads)
    found = {check: _Found() for check in runtime.CHECKS}
    with progress(f"parity {kind}", len(golden.cases(subject.golden))) as advance:
        for case, ports in golden.read(subject.golden):
            try:
                for check, expected, actual in runtime.checks(model, ports):
                    waveform, logits = check in runtime.WAVEFORMS, check in runtime.LOGITS
                    found[check].add(case, expected, actual, waveform=waveform, logits=logits)
            except KeyError as error:
                raise Problem(f"{subject.golden}: case {case} has no {error}; record the golden cases again") from None
            except (ValueError, Problem) as error:
                raise Problem(f"{subject.name} {kind}: case {case}: {error}") from None
            advance(1)
    return {check: cases.summary() for check, cases in found.items()}


class _Found:
    """The cases of one check."""

    def __init__(self) -> None:
        self._cases: list[dict[str, Any]] = []
        self._rows: list[int] = []

    def add(
        self, case: str, expected: np.ndarray, actual: np.ndarray, waveform: bool = False, logits: bool = False
    ) -> None:
        agreement = asdict(compare(expected, actual, NEAR_TIE))
        if waveform:
            agreement["stft"] = stft_distance(expected, actual)
        if logits:
            agreement["kl"] = kl_divergence(expected, actual)
        self._cases.append({"case": case, **agreement})
        self._rows.append(int(np.prod(expected.shape[:-1])))

    def summary(self) -> dict[str, Any]:
        cases = self._cases
        worst = min(cases, key=lambda case: case["sqnr_db"])
        return {
            "sqnr_db": worst["sqnr_db"],
            "cosine": min(case["cosine"] for case in cases),
            "max_abs": max(case["max_abs"] for case in cases),
            "top1": _over_rows(cases, self._rows, "top1"),
            "top1_near_tie": _over_rows(cases, self._rows, "top1_near_tie"),
            "worst": f"{worst['case']}, index {list(worst['worst'])}",
            "cases": cases,
            **({"stft": max(case["stft"] for case in cases)} if "stft" in worst else {}),
            **({"kl": _over_rows(cases, self._rows, "kl")} if "kl" in worst else {}),
        }


def _over_rows(cases: list[dict[str, Any]], rows: list[int], metric: str) -> float:
    return float(np.average([case[metric] for case in cases], weights=rows))
