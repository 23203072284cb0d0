"""The page: everything that was gathered, drawn and spoken, in one file that needs no other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError
from validate.report import figures, spoken, words
from validate.report.collect import Collected, Component, collect

__all__ = ["render", "write"]

_TEMPLATES = Path(__file__).parent / "templates"
Drawn = tuple[str, Markup]  # what it shows, and the figure


def write(out: Path) -> None:
    """Write the page, beside its place and renamed.

    Raises:
        UserError: nothing is built; params.yaml cannot be read.
    """
    page = render(collect())
    out.parent.mkdir(parents=True, exist_ok=True)
    with output.writing(out) as beside:
        beside.write_text(page, encoding="utf-8")


def render(collected: Collected) -> str:
    """Return the page; the same bytes for what is the same. Token2wav's graphs run for it, where they are built."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    components = collected.components
    heard, silence = _sound(collected)
    return environment.get_template("page.html.j2").render(
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        components=components,
        status=words.status(components),
        headline=words.headline(components),
        synthetic=[one.name for one in components if one.weights and one.weights.kind == "synthetic"],
        note=words.beside_note(components),
        accuracy=[figure for component in components for figure in _accuracy(component)],
        latency=[figure for component in components for figure in _latency(component)],
        machines=_machines(components),
        versions=collected.versions,
        heard=heard,
        silence=silence,
        takes=_takes(heard) if heard else [],
    )


def _accuracy(component: Component) -> list[Drawn]:
    """Return a figure for each check of a component."""
    found = []
    for check, series in groupby(component.accuracy, key=lambda series: series.check):
        name = _joined(component.name, check)
        found.append((name, figures.sqnr(list(series), f"SQNR of each golden case: {name}")))
    return found


def _latency(component: Component) -> list[Drawn]:
    """Return a figure for each curve of a component."""
    found = []
    for curve in component.curves:
        name = _joined(component.name, curve.graph)
        found.append((name, figures.latency(curve, f"Latency over {curve.axis}: {name}")))
    return found


def _joined(component: str, part: str) -> str:
    return f"{component}: {part}" if part and part != component else component


def _machines(components: Sequence[Component]) -> list[tuple[list[str], dict[str, str | int]]]:
    """Return each machine that latencies come from, with the components that were measured there."""
    found: list[tuple[list[str], dict[str, str | int]]] = []
    for component in components:
        for curve in component.curves:
            names = next((names for names, machine in found if machine == curve.machine), None)
            if names is None:
                found.append(([component.name], curve.machine))
            elif component.name not in names:
                names.append(component.name)
    return found


def _sound(collected: Collected) -> tuple[spoken.Spoken | None, str]:
    """Return what was spoken, or why nothing was."""
    subject = collected.subjects.get(spoken.SPEAKS)
    if subject is None:
        return None, f"{spoken.SPEAKS} is not built here; run dvc repro"
    try:
        return spoken.speak(subject, collected.threads), ""
    except UserError as problem:
        return None, str(problem)


def _takes(heard: spoken.Spoken) -> list[tuple[spoken.Take, Markup, str]]:
    """Return each take with its spectrogram and its WAV as a data URI."""
    return [
        (
            take,
            figures.spectrogram(take, heard.rate, f"Spectrogram of the take by {take.name}"),
            spoken.wav_uri(take, heard.rate),
        )
        for take in heard.takes
    ]
