"""How well graphs agree with golden cases: ``validate parity`` measures it, and ``qwen-omni-onnx verify`` again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import compare, kl_divergence, stft_distance, token_db
from qwen_omni_onnx.common.session import open_session, run

__all__ = ["BFLOAT16", "NEAR_TIE", "beside", "kept", "of_bfloat16", "of_graph", "of_runtime"]

BFLOAT16 = "bfloat16"  # PyTorch in the checkpoint's own dtype: the yardstick, beside the kinds of graphs
NEAR_TIE = 0.02  # of a row's standard deviation: two candidates closer than that count as equal
_WORST = 5  # percentile of the tokens' SQNR: 95 of 100 tokens are better
_NO_KL = 1e-12  # nats; a yardstick of nothing would make any divergence infinitely large


def of_graph(
    graph: Path, inputs: Sequence[str], outputs: Sequence[str], recorded: Path, threads: int
) -> dict[str, Any]:
    """Return how one graph agrees: every case, the worst of each metric, and top-1 over all rows.

    ``token_median_db`` and ``token_p95_db`` are the SQNR that half of all tokens of all cases reach, and 95 of 100.

    Args:
        graph: the file.
        inputs: their names.
        outputs: their names; the first is compared, the others are lengths, and must be equal.
        recorded: the golden cases.
        threads: of the session.

    Raises:
        UserError: an output is missing, of another shape, NaN or infinite, or lengths differ; the message names graph
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
            raise UserError(f"{recorded}: case {case} has no {error}; record the golden cases again") from None
        except ValueError as error:
            raise UserError(f"{graph.name}: case {case}: {signal}: {error}") from None
        if wrong:
            given, expected = result[wrong[0]].tolist(), ports[wrong[0]].tolist()
            raise UserError(f"{graph.name}: case {case}: {wrong[0]}: {given}, expected {expected}")
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
        runtime: what a component's ``runtime`` names: see ``qwen_omni_onnx.token2wav.golden``.
        graphs: file of each graph, by stem.
        companions: folder of what was exported beside the graphs.
        recorded: the golden cases.
        threads: of the sessions.
        advance: told of each case that is done.

    Raises:
        UserError: as :func:`of_graph`.
    """
    model = runtime.open_graphs(graphs, companions, threads)
    found = {check: _Found() for check in runtime.CHECKS}
    for case, ports in golden.read(recorded):
        try:
            for check, expected, actual in runtime.checks(model, ports):
                waveform, logits = check in runtime.WAVEFORMS, check in runtime.LOGITS
                found[check].add(case, expected, actual, waveform=waveform, logits=logits)
        except KeyError as error:
            raise UserError(f"{recorded}: case {case} has no {error}; record the golden cases again") from None
        except (ValueError, UserError) as error:
            raise UserError(f"case {case}: {error}") from None
        advance(1)
    return {check: cases.summary() for check, cases in found.items()}


def of_bfloat16(runtime: ModuleType | None, outputs: Sequence[str], recorded: Path) -> dict[str, dict[str, Any]]:
    """Return how PyTorch in bfloat16 agrees with PyTorch in float32, check by check: the yardstick of quantized graphs.

    Bfloat16 is what the checkpoint is published in, so its noise is what the model's own users hear.

    Args:
        runtime: what a component's ``runtime`` names; None for a single graph, whose only check is "".
        outputs: of a single graph; the first is compared.
        recorded: the golden cases.

    Returns:
        Nothing for checks of which there is no yardstick.
    """
    found: dict[str, _Found] = {}
    for case, ports in golden.read(recorded):
        given = golden.read_yardstick(recorded, case)
        if not given:
            continue
        if runtime is None:
            pairs = iter([("", ports[outputs[0]], given[outputs[0]])])
        else:
            pairs = runtime.yardstick(ports, given)
        for check, expected, actual in pairs:
            logits = runtime is not None and check in runtime.LOGITS
            found.setdefault(check, _Found()).add(case, expected, actual, logits=logits)
    return {check: cases.summary() for check, cases in found.items()}


def beside(found: Mapping[str, Any], yardstick: Mapping[str, Any] | None) -> dict[str, float]:
    """Return how much noisier than the yardstick something is, for every metric that holds for any weights.

    Args:
        found: what :func:`of_graph`, or :func:`of_runtime` of one check, says of it.
        yardstick: what :func:`of_bfloat16` says of the same check; None: there is none, and so nothing to return.
    """
    if yardstick is None or "token_median_db" not in found:
        return {}
    compared = {
        "below_bfloat16_median_db": yardstick["token_median_db"] - found["token_median_db"],
        "below_bfloat16_p95_db": yardstick["token_p95_db"] - found["token_p95_db"],
    }
    if "kl" in found and "kl" in yardstick:
        compared["kl_over_bfloat16"] = found["kl"] / max(yardstick["kl"], _NO_KL)
        compared["top1_below_bfloat16"] = yardstick["top1"] - found["top1"]
    return compared


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
        self._token_db: list[np.ndarray] = []  # of tokens; a waveform has none

    def add(
        self, case: str, expected: np.ndarray, actual: np.ndarray, waveform: bool = False, logits: bool = False
    ) -> None:
        agreement = asdict(compare(expected, actual, NEAR_TIE))
        if waveform:
            agreement["stft"] = stft_distance(expected, actual)
        else:
            self._token_db.append(token_db(expected, actual))
        if logits:
            agreement["kl"] = kl_divergence(expected, actual)
        self._cases.append({"case": case, **agreement})
        self._rows.append(int(np.prod(expected.shape[:-1])))

    def summary(self) -> dict[str, Any]:
        cases = self._cases
        worst = min(cases, key=lambda case: case["sqnr_db"])
        tokens = np.concatenate(self._token_db) if self._token_db else np.empty(0)
        by_token = (
            {"token_median_db": np.median(tokens), "token_p95_db": np.percentile(tokens, _WORST)} if len(tokens) else {}
        )
        return {
            "sqnr_db": worst["sqnr_db"],
            "cosine": min(case["cosine"] for case in cases),
            "max_abs": max(case["max_abs"] for case in cases),
            "top1": _over_rows(cases, self._rows, "top1"),
            "top1_near_tie": _over_rows(cases, self._rows, "top1_near_tie"),
            "worst": f"{worst['case']}, index {list(worst['worst'])}",
            "cases": cases,
            **{metric: float(value) for metric, value in by_token.items()},
            **({"stft": max(case["stft"] for case in cases)} if "stft" in worst else {}),
            **({"kl": _over_rows(cases, self._rows, "kl")} if "kl" in worst else {}),
        }


def _over_rows(cases: list[dict[str, Any]], rows: list[int], metric: str) -> float:
    return float(np.average([case[metric] for case in cases], weights=rows))
