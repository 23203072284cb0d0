"""How the golden cases of one check came out: each case, and all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from qwen_omni_onnx.common.metrics import Agreement, compare, stft_distance, token_db, token_kl, top1

__all__ = ["NEAR_TIE", "CaseAgreement", "CaseStats", "CheckAgreement"]

NEAR_TIE = 0.02  # of a row's standard deviation: two candidates closer than that count as equal
_WORST = 5  # percentile of the tokens' SQNR: 95 of 100 tokens are better


@dataclass(frozen=True, kw_only=True)
class CaseAgreement(Agreement):
    """How one golden case came out.

    Attributes:
        case: The case's name, which ends in the lengths of its rows.
        stft: Multi-resolution STFT distance; None unless it is a waveform.
        kl: Kullback-Leibler divergence in nats; None unless these are logits.
        kl_without_first: The same without the first token of each sequence; None unless these are logits of sequences.
        top1_without_first: ``top1`` without the first token of each sequence; None where ``kl_without_first`` is.
    """

    case: str
    stft: float | None = None
    kl: float | None = None
    kl_without_first: float | None = None
    top1_without_first: float | None = None


@dataclass(frozen=True)
class CheckAgreement:
    """How all golden cases of one check came out, by one kind of graphs or by PyTorch in bfloat16.

    Attributes:
        cases: Each golden case.
        worst: Name of the worst case by SQNR, and the index of its largest difference.
        sqnr_db: SQNR of the worst case.
        cosine: Smallest of all cases.
        max_abs: Largest of all cases.
        top1: Share of all rows whose largest entry is the same.
        top1_near_tie: The same with near ties counted as equal.
        token_median_db: SQNR that half of all tokens of all cases reach; None of a waveform, which has no tokens.
        token_p95_db: SQNR that 95 % of all tokens reach; None of a waveform.
        stft: Largest multi-resolution STFT distance of all cases; None unless these are waveforms.
        kl: Kullback-Leibler divergence in nats, mean over all rows; None unless these are logits.
        below_bfloat16_median_db: ``token_median_db`` of PyTorch in bfloat16 less this one; None without a yardstick.
        below_bfloat16_p95_db: The same of ``token_p95_db``.
        kl_over_bfloat16: ``kl`` as a multiple of that of PyTorch in bfloat16; None unless these are logits.
        top1_below_bfloat16: ``top1`` of PyTorch in bfloat16 less this one; None unless these are logits.
        without_first_median_db: ``token_median_db`` without the first token of each sequence, a decoder's attention
            sink; None unless the check compares whole sequences.
        without_first_p95_db: The same of ``token_p95_db``.
        kl_without_first: The same of ``kl``.
        top1_without_first: The same of ``top1``; None unless these are logits.
    """

    cases: tuple[CaseAgreement, ...]
    worst: str
    sqnr_db: float
    cosine: float
    max_abs: float
    top1: float
    top1_near_tie: float
    token_median_db: float | None = None
    token_p95_db: float | None = None
    stft: float | None = None
    kl: float | None = None
    below_bfloat16_median_db: float | None = None
    below_bfloat16_p95_db: float | None = None
    kl_over_bfloat16: float | None = None
    top1_below_bfloat16: float | None = None
    without_first_median_db: float | None = None
    without_first_p95_db: float | None = None
    kl_without_first: float | None = None
    top1_without_first: float | None = None


class CaseStats:
    """The cases of one check, added one after another."""

    def __init__(self) -> None:
        self._cases: list[CaseAgreement] = []
        self._rows: list[int] = []
        self._rest: list[int] = []  # rows without the first of each sequence
        self._token_db: list[np.ndarray] = []  # of tokens; a waveform has none
        self._rest_db: list[np.ndarray] = []

    def add(
        self,
        case: str,
        expected: np.ndarray,
        actual: np.ndarray,
        waveform: bool = False,
        logits: bool = False,
        rest: np.ndarray | None = None,
    ) -> None:
        """Add a case.

        Args:
            case: Name of the case.
            expected: Expected values, [..., channels].
            actual: Actual values, of the same shape.
            waveform: Whether these are waveforms, which have no tokens.
            logits: Whether these are logits.
            rest: Which rows are not the first token of a sequence, [rows]; None where rows are no sequences.

        Raises:
            ValueError: The shapes differ, or a value is not finite.
        """
        compared = compare(expected, actual, NEAR_TIE)
        kl = token_kl(expected, actual) if logits else None
        found = CaseAgreement(
            **asdict(compared),
            case=case,
            stft=stft_distance(expected, actual) if waveform else None,
            kl=None if kl is None else _mean(kl),
        )
        rows = int(np.prod(expected.shape[:-1]))
        if rest is not None and rest.any():
            self._rest_db.append(token_db(expected[rest], actual[rest]))
            if kl is not None:
                same = top1(expected[rest], actual[rest])
                found = replace(found, kl_without_first=_mean(kl[rest]), top1_without_first=same)
        self._cases.append(found)
        self._rows.append(rows)
        self._rest.append(0 if rest is None else int(rest.sum()))
        if not waveform:
            self._token_db.append(token_db(expected, actual))

    def summary(self) -> CheckAgreement:
        """Return how all cases came out."""
        cases = self._cases
        worst = min(cases, key=lambda case: case.sqnr_db)
        median, p95 = _median_and_p95(self._token_db)
        without_first_median, without_first_p95 = _median_and_p95(self._rest_db)
        return CheckAgreement(
            cases=tuple(cases),
            worst=f"{worst.case}, index {list(worst.worst)}",
            sqnr_db=worst.sqnr_db,
            cosine=min(case.cosine for case in cases),
            max_abs=max(case.max_abs for case in cases),
            top1=float(np.average([case.top1 for case in cases], weights=self._rows)),
            top1_near_tie=float(np.average([case.top1_near_tie for case in cases], weights=self._rows)),
            token_median_db=median,
            token_p95_db=p95,
            stft=max((case.stft for case in cases if case.stft is not None), default=None),
            kl=self._average("kl", self._rows),
            without_first_median_db=without_first_median,
            without_first_p95_db=without_first_p95,
            kl_without_first=self._average("kl_without_first", self._rest),
            top1_without_first=self._average("top1_without_first", self._rest),
        )

    def _average(self, metric: str, rows: Sequence[int]) -> float | None:
        """Return the mean of a metric over all rows of the cases that have it; None if none has."""
        found = [(getattr(case, metric), count) for case, count in zip(self._cases, rows, strict=True)]
        values = [(value, count) for value, count in found if value is not None]
        if not values:
            return None
        return float(np.average([value for value, _ in values], weights=[count for _, count in values]))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _median_and_p95(token_db_by_case: Sequence[np.ndarray]) -> tuple[float, float] | tuple[None, None]:
    """Return the SQNR that half of all tokens reach, and that 95 % of them reach; None where there is no token."""
    tokens = np.concatenate(token_db_by_case) if token_db_by_case else np.empty(0)
    if not len(tokens):
        return None, None
    return float(np.median(tokens)), float(np.percentile(tokens, _WORST))
