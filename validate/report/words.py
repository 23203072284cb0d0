"""Formats values for the page, and writes its sentences on the results."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_omni_onnx.common.agreement import CaseAgreement, Verdict
from qwen_omni_onnx.common.metrics import EXACT_DB
from validate.report.collect import Component, by_lengths

__all__ = ["FILTERS", "NoteRow", "beside_note", "headline", "status"]

_COMPARISONS = {">=": "≥", "<=": "≤"}
_ORIGINAL_STEM = "qwen25_7b_audio"  # stem of the projection that the original model card describes
_CORE, _CORE_COMPONENTS = "audio_core", ("encoder", "token2wav")
NoteRow = tuple[str, str, str]


def status(components: Sequence[Component]) -> str:
    """Return the worst status of all components: ``red``, ``unproven`` or ``green``."""
    statuses = {component.status for component in components}
    return next(status for status in ("red", "unproven", "green") if status in statuses)


def headline(components: Sequence[Component]) -> list[str]:
    """Return one or two sentences on whether the gates are green."""
    green = sum(component.green for component in components)
    total = sum(component.total for component in components)
    sentences = []
    if red := [component.name for component in components if component.status == "red"]:
        sentences.append(f"{total - green} of {total} gates missed, of {', '.join(red)}.")
    elif status(components) == "green":
        sentences.append(f"All gates green: {green} of {total}.")
    else:
        sentences.append(f"{green} of {total} gates were green when judged.")
    if doubtful := [component.name for component in components if component.troubles]:
        sentences.append(f"Reports are missing, or not about what is here now: {', '.join(doubtful)}.")
    return sentences


def beside_note(components: Sequence[Component]) -> list[NoteRow]:
    """Return rows (file, size in the original model card, size here) of the components that are built.

    The original model card is about the 7B: there are no rows if the projection is another checkpoint's.
    """
    built = {component.name: component for component in components if component.graphs}
    if "projection" in built and built["projection"].graphs[0].stem != _ORIGINAL_STEM:
        return []
    rows = []
    if "projection" in built:
        (graph,) = built["projection"].graphs
        rows.append(("projection, float32, external data", "41.13 MiB", f"{mib(graph.data_bytes)} MiB"))
        if graph.quantized_nbytes is not None:
            rows.append(("projection, INT8", "about 10 MB", f"{megabytes(graph.quantized_nbytes)} MB"))
    core = [built[name] for name in ((_CORE,) if _CORE in built else _CORE_COMPONENTS) if name in built]
    nbytes = [component.quantized_nbytes for component in core]
    if (_CORE in built or len(core) == len(_CORE_COMPONENTS)) and None not in nbytes:
        description = "one file" if _CORE in built else f"{' and '.join(_CORE_COMPONENTS)} together"
        depth = ", ".join(f"{component.name} {component.layers} layers" for component in core if component.layers)
        total = megabytes(sum(size or 0 for size in nbytes))
        ours = f"{total} MB: {description}{f'; as built here: {depth}' if depth else ''}"
        rows.append(("audio core, INT8", "1,088.9 MB: all 32 layers of the encoder, all 22 of token2wav", ours))
    return rows


def value(verdict: Verdict) -> str:
    return "no number" if verdict.value is None else f"{verdict.value:.4g} {verdict.unit}".strip()


def limit(verdict: Verdict) -> str:
    return f"{_COMPARISONS[verdict.comparison]} {verdict.limit:g}{verdict.note}"


def megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.2f}"


def mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.2f}"


def whole_mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.0f}"


def decibels(number: float | None) -> str:
    if number is None:
        return "no number"
    return "exact" if number >= EXACT_DB else f"{number:.1f}"


def fixed(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:,.{digits}f}"


def significant(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}g}"


def anchor(name: str) -> str:
    """Return a name as an HTML id."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def in_order(cases: Sequence[CaseAgreement]) -> list[CaseAgreement]:
    """Return golden cases sorted by their lengths."""
    return sorted(cases, key=by_lengths)


FILTERS = {
    function.__name__: function
    for function in (value, limit, megabytes, mib, whole_mib, decibels, fixed, significant, anchor, in_order)
}
