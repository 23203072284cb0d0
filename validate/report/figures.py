"""The page's figures, as SVG with the colours of the page's style sheet, for light and dark backgrounds.

Matplotlib draws in placeholder colours; each is replaced by the CSS variable of its name. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from omni.reports import GraphLatency
from qwen_omni_onnx.common.agreement import BFLOAT16, FLOAT, QUANTIZED, CheckAgreement
from qwen_omni_onnx.common.metrics import EXACT_DB
from validate.report.collect import by_lengths
from validate.report.spoken import Take

__all__ = ["latency", "spectrogram", "sqnr"]

_NAMES = ("ink", "faint", "line", "float32", "quantized", "note", "bfloat16")
INK, FAINT, LINE, _FLOAT, _QUANTIZED, _NOTE, _BFLOAT16 = (f"#0a00{number:02x}" for number in range(len(_NAMES)))
_COLOURS = {FLOAT: _FLOAT, QUANTIZED: _QUANTIZED, BFLOAT16: _BFLOAT16}
_WIDTH = 3.5  # inches of 72 pt: 336 CSS pixels, a phone's, and a third of a desktop's
_MOST_DB = 150.0  # length of the bar of an exact match, whose SQNR is infinite; the bar is labelled "exact"
_LONGEST_NAME = 30  # characters of a golden case's name; longer ones would leave no space for the bar
_POINTS, _HOP, _FLOOR_DB = 512, 128, -80.0  # window, hop and lowest level of the spectrogram

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a processor's name may contain a dollar sign
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def latency(found: GraphLatency, label: str) -> Markup:
    """Return a plot of each kind's median time over the length, with the original model card's line if it has one."""
    with rc_context({**_SETTINGS, "svg.hashsalt": label}):
        figure, axes = _figure(2.6)
        lengths = [entry.length for entry in found.lengths]
        highest = 0.0
        for kind in found.fit:
            times = [entry.ms(kind) or 0.0 for entry in found.lengths]
            highest = max(highest, *times)
            axes.plot(lengths, times, "o-", color=_COLOURS[kind], markersize=4, label=kind)
        if note := found.original_note:
            each, start = note["ms_per_token"], note["ms"]
            ends = np.array([min(lengths), max(lengths)])
            axes.plot(
                ends, start + each * ends, "--", color=_NOTE, label=f"original note: {each:g} ms each + {start:g}"
            )
        axes.set(xlabel=found.axis, ylabel="ms", ylim=(0, 1.06 * highest))
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handlelength=1.6)
        return _svg(figure, label)


def sqnr(kinds: Mapping[str, CheckAgreement], limits: Mapping[str, float | None], label: str) -> Markup:
    """Return a bar chart of the golden cases of one check by kind; dashed lines are the gate's limits.

    Args:
        kinds: Agreement with the golden cases, by kind of graphs.
        limits: The gate's limits on the SQNR in dB, by kind; None where there is none.
        label: Description of the figure.
    """
    cases = [case.case for case in sorted(next(iter(kinds.values())).cases, key=by_lengths)]
    with rc_context({**_SETTINGS, "svg.hashsalt": label}):
        thick = 0.8 / len(kinds)
        figure, axes = _figure(0.75 + 0.19 * len(cases) * len(kinds))
        for number, (kind, found) in enumerate(kinds.items()):
            values = [case.sqnr_db for case in sorted(found.cases, key=by_lengths)]
            places = np.arange(len(values)) + (number - (len(kinds) - 1) / 2) * thick
            axes.barh(places, np.clip(values, 0, _MOST_DB), thick * 0.9, color=_COLOURS[kind], label=kind)
            for place, value in zip(places, values, strict=True):
                text = "exact" if value >= EXACT_DB else f"{value:.1f}" if np.isfinite(value) else "no number"
                end = min(max(np.nan_to_num(value), 0.0), _MOST_DB)
                axes.annotate(text, (end, place), (3, 0), textcoords="offset points", va="center", size=7.5)
            if (limit := limits.get(kind)) is not None:
                axes.axvline(limit, color=_COLOURS[kind], linestyle="--", linewidth=1)
        axes.set(
            xlabel="SQNR, dB", yticks=np.arange(len(cases)), yticklabels=map(_short, cases), xlim=(0, _MOST_DB * 1.12)
        )
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        return _svg(figure, label)


def spectrogram(take: Take, rate: int, label: str) -> Markup:
    """Return the spectrogram of a take, in dB relative to its loudest bin, down to -80 dB."""
    decibels = magnitudes_db(take.waveform)
    seconds, kilohertz = len(take.waveform) / rate, rate / 2000
    with rc_context({**_SETTINGS, "svg.hashsalt": label}):
        figure, axes = _figure(2.1)
        axes.imshow(
            decibels, cmap="magma", origin="lower", aspect="auto", interpolation="none", vmin=_FLOOR_DB, vmax=0,
            extent=(0, seconds, 0, kilohertz),
        )  # fmt: skip
        axes.set(xlabel="seconds", ylabel="kHz")
        return _svg(figure, label)


def magnitudes_db(waveform: np.ndarray) -> np.ndarray:
    """Return the magnitudes [bins, frames] of Hann windows of 512 samples, in dB relative to the loudest bin.

    A shorter waveform is padded with zeros.
    """
    padded = np.pad(waveform.astype(np.float64), (0, max(0, _POINTS - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _POINTS)[::_HOP] * np.hanning(_POINTS)
    power = np.abs(np.fft.rfft(frames, axis=-1)).T ** 2
    loudest = max(float(power.max()), np.finfo(np.float64).tiny)
    return np.maximum(10 * np.log10(np.maximum(power / loudest, 1e-30)), _FLOOR_DB)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, label: str) -> Markup:
    """Return inline SVG, without prolog, metadata, style and unused ids, which would apply to the whole page."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r'(<\w[^<>]*?) id="([^"]*)"', lambda found: found[0] if found[2] in referred else found[1], text)
    text = re.sub(r"#0a00(0\d)", lambda found: f"var(--{_NAMES[int(found[1])]})", text)
    return Markup(text.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(label), 1))
