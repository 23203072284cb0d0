"""How well graphs agree with golden cases: what ``validate parity`` measures, and ``speech verify`` measures again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from omni import golden
from omni.errors import Problem
from omni.metrics import compare, kl_divergence, stft_distance
from omni.session import open_session, run

__all__ = ["NEAR_TIE", "kept", "of_graph", "of_runtime"]

NEAR_TIE = 0.02  # of a row's standard deviation: two candidates closer than that count as equal


def of_graph(
    graph: Path, inputs: Sequence[str], outputs: Sequence[str], recorded: Path, threads: int
) -> dict[str, Any]:
    """Return how one graph agrees: every case, the worst of each metric, and top-1 over all rows.

    Args:
        graph: the file.
        inputs: their names.
        outputs: their names; the first is compared, the others are lengths, and must be equal.
        recorded: the golden cases.
        threads: of the session.

    Raises:
        Problem: an output is missing, of another shape, NaN or infinite, or lengths differ; the message names graph
            and case.
    """
    session = open_session(graph, threads=threads)
    signal, *lengths = outputs
    found = _Found()
    for case, ports in golden.read(recorded):
        try:
            result = run(session, {name: ports[name] for name in inputs})
            found.add(case, ports[signal], result[signal])
            wrong = [name for name in lengths if not np.array_equal(ports[name], result[name])]
        except KeyError as error:
            raise Problem(f"{recorded}: case {case} has no {error}; record the golden cases again") from None
        except ValueError as error:
            raise Problem(f"{graph.name}: case {case}: {signal}: {error}") from None
        if wrong:
            given, expected = result[wrong[0]].tolist(), ports[wrong[0]].tolist()
            raise Problem(f"{graph.name}: case {case}: {wrong[0]}: {given}, expected {expected}")
    return found.summary()


def of_runtime(
    runtime: ModuleType,
    graphs: Mapping[str, Path],
    companions: Path,
    recorded: Path,
    threads: int,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Return how graphs agree as their run-time uses them, check by check: see :func:`of_graph`.

    Args:
        runtime: what a component's ``runtime`` names: see ``speech.token2wav.golden``.
        graphs: file of each graph, by stem.
        companions: folder of what was exported beside the graphs.
        recorded: the golden cases.
        threads: of the sessions.
        advance: told of each case that is done.

    Raises:
        Problem: as :func:`of_graph`.
    """
    model = runtime.open_graphs(graphs, companions, threads)
    found = {check: _Found() for check in runtime.CHECKS}
    for case, ports in golden.read(recorded):
        try:
            for check, expected, actual in runtime.checks(model, ports):
                waveform, logits = check in runtime.WAVEFORMS, check in runtime.LOGITS
                found[check].add(case, expected, actual, waveform=waveform, logits=logits)
        except KeyError as error:
            raise Problem(f"{recorded}: case {case} has no {error}; record the golden cases again") from None
        except (ValueError, Problem) as error:
            raise Problem(f"case {case}: {error}") from None
        advance(1)
    return {check: cases.summary() for check, cases in found.items()}


def kept(value: float | None, sense: str, limit: float) -> bool:
    """Whether a value keeps a limit, ``>=`` or ``<=``; none, and what is no finite number, never does."""
    if value is None or not math.isfinite(value):
        return False
    return value >= limit if sense == ">=" else value <= limit


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
