"""Does the graph compute what PyTorch computed? All graphs against the golden cases."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from omni import golden
from omni.errors import Problem
from omni.metrics import compare
from omni.session import open_session, run
from validate.subject import Subject

__all__ = ["NEAR_TIE", "measure"]

NEAR_TIE = 0.02  # of a row's standard deviation: two candidates closer than that count as equal


def measure(subject: Subject, threads: int) -> dict[str, Any]:
    """Return, for each graph, every case's agreement, the worst of each metric, and top-1 over all rows of an output.

    Raises:
        Problem: an output is missing, of another shape, NaN or infinite, or lengths differ; the message names graph
            and case.
    """
    return {kind: _graph(subject, kind, threads) for kind in subject.graphs}


def _graph(subject: Subject, kind: str, threads: int) -> dict[str, Any]:
    session = open_session(subject.graphs[kind], threads=threads)
    signal, *lengths = (port.name for port in subject.contract.outputs)
    cases: list[dict[str, Any]] = []
    rows: list[int] = []
    for case, ports in golden.read(subject.golden):
        try:
            result = run(session, {port.name: ports[port.name] for port in subject.contract.inputs})
            agreement = compare(ports[signal], result[signal], NEAR_TIE)
            wrong = [name for name in lengths if not np.array_equal(ports[name], result[name])]
        except KeyError as error:
            raise Problem(f"{subject.golden}: case {case} has no {error}; record the golden cases again") from None
        except ValueError as error:
            raise Problem(f"{subject.graphs[kind].name}: case {case}: {signal}: {error}") from None
        if wrong:
            found, expected = result[wrong[0]].tolist(), ports[wrong[0]].tolist()
            raise Problem(f"{subject.graphs[kind].name}: case {case}: {wrong[0]}: {found}, expected {expected}")
        cases.append({"case": case, **asdict(agreement)})
        rows.append(int(np.prod(ports[signal].shape[:-1])))
    worst = min(cases, key=lambda case: case["sqnr_db"])
    return {
        "sqnr_db": worst["sqnr_db"],
        "cosine": min(case["cosine"] for case in cases),
        "max_abs": max(case["max_abs"] for case in cases),
        "top1": _over_rows(cases, rows, "top1"),
        "top1_near_tie": _over_rows(cases, rows, "top1_near_tie"),
        "worst": f"{worst['case']}, index {list(worst['worst'])}",
        "cases": cases,
    }


def _over_rows(cases: list[dict[str, Any]], rows: list[int], metric: str) -> float:
    return float(np.average([case[metric] for case in cases], weights=rows))
