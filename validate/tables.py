"""Prints the results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape

from omni.overfitting import Overfitting
from omni.params import Limits
from omni.reports import ContractCheck, GraphLatency, MemoryReport, SweptGraph, VariantCost
from omni.speech_report import SpeechPair, SpeechReport
from omni.terminal import print_table
from qwen_omni_onnx.common.agreement import CaseAgreement, CheckAgreement, Verdict

__all__ = ["contract", "gate", "latency", "memory", "overfitting", "parity", "speech", "sweep", "variants"]

_COMPARED = ["quantized ms", "speed-up", "95 % interval", "ceiling", "share of it", "95 % interval", "attempts"]
_WARNING = "[yellow]warning[/]"
_MARK = {True: "[green]ok[/]", False: "[red]MISS[/]"}
_MIB = 2**20


def contract(name: str, checks: Sequence[ContractCheck]) -> None:
    """Print the results of ``validate contract``."""
    rows = [[row.graph, row.check, _MARK[row.ok], escape(row.detail)] for row in checks]
    print_table(f"{name}: contract", ["graph", "check", "", "found"], rows)


def parity(name: str, compared_with: str, checks: Mapping[str, Mapping[str, CheckAgreement]], limits: Limits) -> None:
    """Print the results of ``validate parity``, one table for each check.

    Args:
        name: Name of the component or published folder.
        compared_with: Source of the golden cases, in words.
        checks: Agreement with the golden cases, by check and by kind.
        limits: Limits of the component; a limit on top-1 agreement adds columns for it.
    """
    for check, kinds in checks.items():
        _parity(f"{name}: {check}", compared_with, kinds, limits.check(check).judges_classes)


def _parity(title: str, compared_with: str, kinds: Mapping[str, CheckAgreement], with_classes: bool) -> None:
    tokens = any(found.token_median_db is not None for found in kinds.values())
    stft, kl = (any(getattr(found, key) is not None for found in kinds.values()) for key in ("stft", "kl"))

    def metrics(found: CheckAgreement | CaseAgreement) -> list[str]:
        return [
            f"{found.sqnr_db:.2f}",
            f"{found.cosine:.6f}",
            f"{found.max_abs:.3g}",
            *([_number(found.stft, ".4f")] if stft else []),
            *([_number(found.kl, ".4f")] if kl else []),
            *([f"{found.top1:.4f}", f"{found.top1_near_tie:.4f}"] if with_classes else []),
        ]

    rows = []
    for kind, found in kinds.items():
        by_token = ["", ""] if tokens else []
        rows += [
            [kind, escape(case.case), *by_token, *metrics(case), escape(str(list(case.worst)))] for case in found.cases
        ]
        if tokens:
            by_token = [_number(found.token_median_db, ".1f"), _number(found.token_p95_db, ".1f")]
        rows.append([f"[bold]{kind}[/]", "[bold]worst[/]", *by_token, *metrics(found), escape(found.worst)])
    columns = ["graph", "case", *(["median token dB", "95 % reach"] if tokens else []), "SQNR dB", "cosine", "max abs"]
    columns += ["STFT"] * stft + ["KL"] * kl + (["top-1, strict", "near ties equal"] if with_classes else [])
    print_table(f"{title}: parity with {compared_with}", [*columns, "largest difference at"], rows)


def latency(name: str, found: GraphLatency) -> None:
    """Print the results of ``validate latency`` for a graph."""
    rows = []
    for entry in found.lengths:
        row = [str(entry.length), f"{entry.float32_ms:.2f}"]
        if entry.speedup is not None:
            row += [_number(entry.quantized_ms, ".2f"), f"{entry.speedup:.2f}"]
            row += [_interval(entry.speedup_low, entry.speedup_high), _number(entry.ceiling, ".2f")]
            row += [_number(entry.share, ".2f"), _interval(entry.share_low, entry.share_high), str(entry.attempts)]
        rows.append(row)
    compared = any(entry.speedup is not None for entry in found.lengths)
    print_table(
        f"{name}: latency, {found.threads or found.machine['cores']} threads, {found.machine['processor']}, "
        f"other processes on {found.cores_busy_with_other_processes} cores",
        [found.axis, "float32 ms", *(_COMPARED if compared else [])],
        rows,
    )
    lines = [[kind, f"{fit.ms_each:.4f}", f"{fit.ms:.2f}"] for kind, fit in found.fit.items()]
    if note := found.original_note:
        lines.append(["original note", f"{note['ms_per_token']:.4f}", f"{note['ms']:.2f}"])
    print_table(f"linear fit over {found.axis}", ["", "ms each", "+ ms"], lines)


def sweep(name: str, found: SweptGraph) -> None:
    """Print the results of ``validate latency --sweep`` for a graph."""
    for kind, tried in found.tried.items():
        rows = [
            [entry["provider"], str(entry["threads"]), entry["optimization"], f"{entry['ms']:.2f}", mark]
            for entry in sorted(tried, key=lambda entry: entry["ms"])
            for mark in ["[green]best[/]" if entry == found.best[kind] else ""]
        ]
        columns = ["provider", "threads", "optimization", "ms", ""]
        print_table(f"{name}, {kind}: session options at {found.axis} {found.length}", columns, rows)


def memory(found: MemoryReport) -> None:
    """Print the results of ``validate memory``."""
    peaks = [(stage, built.libraries_bytes, built.peak_bytes, built.rebuilt_the_same)
             for stage, built in found.build.items()]  # fmt: skip
    peaks += [(f"{stem} {kind}", session.libraries_bytes, session.peak_bytes, None)
              for stem, sessions in found.graphs.items() for kind, session in sessions.items()]  # fmt: skip
    same = {True: "yes", False: "[red]NO[/]", None: ""}
    rows = [
        [what, f"{base / _MIB:.0f}", f"{peak / _MIB:.0f}", f"{(peak - base) / _MIB:.0f}", same[rebuilt]]
        for what, base, peak, rebuilt in peaks
    ]
    columns = ["", "libraries MiB", "peak MiB", "above MiB", "same bytes again"]
    print_table(f"{found.component}: memory, largest tensor {found.largest_tensor_bytes / _MIB:.0f} MiB", columns, rows)


def variants(name: str, found: Sequence[VariantCost]) -> None:
    """Print cost and distance of the sampler variants."""
    rows = [
        [
            entry.graphs, entry.variant, str(entry.evaluations), f"{entry.cost:.2f}", f"{entry.seconds_each:.2f}",
            f"{entry.mel_db:.1f}, {entry.mel_median_db:.1f}", f"{entry.finer_db:.1f}, {entry.finer_median_db:.1f}",
            f"{entry.waveform_db:.1f}", f"{entry.stft:.3f}",
        ]
        for entry in found
    ]  # fmt: skip
    columns = ["graphs", "variant", "evaluations", "cost", "s per s", "mel dB, median frame", "from a finer solution"]
    print_table(f"{name}: variants, against the float32 reference", [*columns, "waveform dB", "STFT"], rows)


def overfitting(name: str, found: Mapping[str, Overfitting]) -> None:
    """Print how quantized graphs do on calibration's recordings and on held-out ones; nothing if none was compared."""
    if not found:
        return
    rows = [
        [check, "yes" if fit.calibrated else "no", str(fit.calibration), str(fit.held_out), _WARNING * fit.warns]
        for check, fit in found.items()
    ]
    columns = ["check or graph", "calibrated", "on calibration's recordings", "on held-out ones", ""]
    print_table(f"{name}: quantized beside float32", columns, rows)


def gate(name: str, verdicts: Sequence[Verdict], wrong: Sequence[str], warnings: Sequence[str] = ()) -> None:
    """Print the results of ``validate gate``."""
    rows = []
    for verdict in verdicts:
        limit = f"{verdict.comparison} {verdict.limit:g}{verdict.note}"
        value = f"{_number(verdict.value, '.4g') or 'none'} {verdict.unit}"
        rows.append([verdict.of, verdict.label, value, limit, _MARK[verdict.ok]])
    rows += [["", escape(sentence), "", "", _MARK[False]] for sentence in wrong]
    rows += [["", escape(sentence), "", "", _WARNING] for sentence in warnings]
    print_table(f"{name}: gate", ["graph", "metric", "value", "limit", ""], rows)


def _number(value: float | None, shape: str) -> str:
    return "" if value is None else format(value, shape)


def _interval(low: float | None, high: float | None) -> str:
    return f"{_number(low, '.2f')} to {_number(high, '.2f')}"


def speech(report: SpeechReport, worst: Sequence[SpeechPair]) -> None:
    """Print the results of ``validate speech``, and the replies in which the candidate is worst."""
    rows = [
        [
            figure.name,
            f"{figure.value:.3g}",
            "" if figure.low is None else f"{figure.low:.3g} to {figure.high:.3g}",
            str(figure.replies),
            _number(figure.limit, ".3g"),
            figure.verdict or "",
        ]
        for figure in report.figures
    ]
    title = f"{report.chains['candidate']}, beside {report.chains['reference']}"
    print_table(escape(title), ["", "value", "95 % interval", "replies", "limit", ""], rows)
    replies = [
        [pair.question, pair.fault or "", escape(pair.candidate.text), escape(pair.candidate.transcript)]
        for pair in worst
    ]
    print_table("worst replies", ["question", "fault", "written", "understood"], replies)
