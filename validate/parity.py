"""Does the graph compute what PyTorch computed? Both graphs against the golden cases."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from omni import golden
from omni.errors import Problem
from omni.metrics import compare
from omni.session import open_session, run
from validate.subject import Subject

__all__ = ["measure"]


def measure(subject: Subject, near_tie: float, threads: int) -> dict[str, Any]:
    """Return, for each graph, every case's agreement, the worst of each metric, and top-1 over all tokens.

    Raises:
        Problem: an output is missing, of another shape, NaN or infinite; the message names graph and case.
    """
    return {kind: _graph(subject, kind, near_tie, threads) for kind in subject.graphs}


def _graph(subject: Subject, kind: str, near_tie: float, threads: int) -> dict[str, Any]:
    session = open_session(subject.graphs[kind], threads=threads)
    (output,) = subject.contract.outputs
    cases: list[dict[str, Any]] = []
    tokens: list[int] = []
    for case, ports in golden.read(subject.golden):
        try:
            result = run(session, {port.name: ports[port.name] for port in subject.contract.inputs})
            agreement = compare(ports[output.name], result[output.name], near_tie)
        except KeyError as error:
            raise Problem(f"{subject.golden}: case {case} has no {error}; record the golden cases again") from None
        except ValueError as error:
            raise Problem(f"{subject.graphs[kind].name}: case {case}: {output.name}: {error}") from None
        cases.append({"case": case, **asdict(agreement)})
        tokens.append(int(np.prod(ports[output.name].shape[:-1])))
    worst = min(cases, key=lambda case: case["sqnr_db"])
    return {
        "sqnr_db": worst["sqnr_db"],
        "cosine": min(case["cosine"] for case in cases),
        "max_abs": max(case["max_abs"] for case in cases),
        "top1": _over_tokens(cases, tokens, "top1"),
        "top1_near_tie": _over_tokens(cases, tokens, "top1_near_tie"),
        "worst": f"{worst['case']}, index {list(worst['worst'])}",
        "cases": cases,
    }


def _over_tokens(cases: list[dict[str, Any]], tokens: list[int], metric: str) -> float:
    return float(np.average([case[metric] for case in cases], weights=tokens))
