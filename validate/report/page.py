"""The page: everything that was gathered, drawn and spoken, in one file that needs no other."""

from __future__ import annotations

from collections.abc import Sequence
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
    for check, kinds in component.checks.items():
        name = f"{component.name}: {check}"
        limits = {kind: component.limit(kind, check, "sqnr_db") for kind in kinds}
        found.append((name, figures.sqnr(kinds, limits, f"SQNR of each golden case: {name}")))
    return found


def _latency(component: Component) -> list[Drawn]:
    """Return a figure for each graph of a component."""
    found = []
    for stem, measured in component.latency.items():
        name = component.name if stem == component.name else f"{component.name}: {stem}"
        found.append((name, figures.latency(measured, f"Latency over {measured.axis}: {name}")))
    return found


def _machines(components: Sequence[Component]) -> list[tuple[list[str], dict[str, str | int]]]:
    """Return each machine that latencies come from, with the components that were measured there."""
    found: list[tuple[list[str], dict[str, str | int]]] = []
    for component in components:
        for measured in component.latency.values():
            names = next((names for names, machine in found if machine == measured.machine), None)
            if names is None:
                found.append(([component.name], measured.machine))
            elif component.name not in names:
                names.append(component.name)
    return found


def _sound(collected: Collected) -> tuple[spoken.Spoken | None, str]:
    """Return what was spoken, or why nothing was."""
    measured = collected.built.get(spoken.SPEAKS)
    if measured is None:
        return None, f"{spoken.SPEAKS} is not built here; run dvc repro"
    try:
        return spoken.speak(measured, collected.threads), ""
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
