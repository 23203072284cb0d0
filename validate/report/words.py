"""How the page puts values into words, and its own sentences on what was found."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_omni_onnx.common.agreement import CaseAgreement, Verdict
from qwen_omni_onnx.common.metrics import EXACT_DB
from validate.report.collect import Component, by_lengths

__all__ = ["FILTERS", "NoteRow", "beside_note", "headline", "status"]

_COMPARISONS = {">=": "≥", "<=": "≤"}
_NOTED = "qwen25_7b_audio"  # the projection's file that the note describes
_CORE, _CORE_PARTS = "audio_core", ("encoder", "token2wav")
NoteRow = tuple[str, str, str]


def status(components: Sequence[Component]) -> str:
    """Of all together: ``red``, ``unproven`` or ``green``."""
    found = {component.status for component in components}
    return next(one for one in ("red", "unproven", "green") if one in found)


def headline(components: Sequence[Component]) -> list[str]:
    """Say in a sentence or two whether the gates are green."""
    green, total = sum(one.green for one in components), sum(one.total for one in components)
    said = []
    if red := [component.name for component in components if component.status == "red"]:
        said.append(f"{total - green} of {total} gates missed, of {', '.join(red)}.")
    elif status(components) == "green":
        said.append(f"All gates green: {green} of {total}.")
    else:
        said.append(f"{green} of {total} gates were green when judged.")
    if doubtful := [component.name for component in components if component.troubles]:
        said.append(f"Reports are missing, or not about what is here now: {', '.join(doubtful)}.")
    return said


def beside_note(components: Sequence[Component]) -> list[NoteRow]:
    """Return rows (what, the size that the note this project starts from gives, ours) of what is built.

    The note is about the 7B: there are none where the projection is another checkpoint's.
    """
    there = {component.name: component for component in components if component.graphs}
    if "projection" in there and there["projection"].graphs[0].stem != _NOTED:
        return []
    rows = []
    if "projection" in there:
        (graph,) = there["projection"].graphs
        rows.append(("projection, float32, external data", "41.13 MiB", f"{mib(graph.data_bytes)} MiB"))
        if graph.quantized_nbytes is not None:
            rows.append(("projection, INT8", "about 10 MB", f"{megabytes(graph.quantized_nbytes)} MB"))
    parts = [there[name] for name in ((_CORE,) if _CORE in there else _CORE_PARTS) if name in there]
    nbytes = [part.quantized_nbytes for part in parts]
    if (_CORE in there or len(parts) == len(_CORE_PARTS)) and None not in nbytes:
        what = "one file" if _CORE in there else f"{' and '.join(_CORE_PARTS)} together"
        depth = ", ".join(f"{part.name} {part.layers} layers" for part in parts if part.layers)
        total = megabytes(sum(size or 0 for size in nbytes))
        ours = f"{total} MB: {what}{f'; as built here: {depth}' if depth else ''}"
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
    """Turn a name into what an id may be made of."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def in_order(cases: Sequence[CaseAgreement]) -> list[CaseAgreement]:
    """Return golden cases by their lengths."""
    return sorted(cases, key=by_lengths)


FILTERS = {
    function.__name__: function
    for function in (value, limit, megabytes, mib, whole_mib, decibels, fixed, significant, anchor, in_order)
}
