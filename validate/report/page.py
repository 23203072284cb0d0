"""Renders the page: data, figures and audio in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError
from validate.report import figures, spoken, words
from validate.report.collect import Collected, Component, collect
from validate.report.ear import judged_by_ear

__all__ = ["render", "write"]

_TEMPLATES = Path(__file__).parent / "templates"
Drawn = tuple[str, Markup]  # title and figure


def write(out: Path) -> None:
    """Write the page; an existing file is replaced atomically.

    Raises:
        UserError: No component is built, or params.yaml cannot be read.
    """
    page = render(collect())
    out.parent.mkdir(parents=True, exist_ok=True)
    with output.writing(out) as beside:
        beside.write_text(page, encoding="utf-8")


def render(collected: Collected) -> str:
    """Return the page, the same bytes for the same data; token2wav's graphs run for the audio, if they are built."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    components = collected.components
    audio, silence = _sound(collected)
    return environment.get_template("page.html.j2").render(
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        components=components,
        status=words.status(components),
        headline=words.headline(components),
        synthetic=[
            component.name for component in components if component.weights and component.weights.kind == "synthetic"
        ],
        note=words.beside_note(components),
        accuracy=[figure for component in components for figure in _accuracy(component)],
        latency=[figure for component in components for figure in _latency(component)],
        machines=_machines(components),
        versions=collected.versions,
        heard=audio,
        silence=silence,
        takes=_takes(audio) if audio else [],
        ear=judged_by_ear(),
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
    """Return each machine on which latencies were measured, with the names of the components."""
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
    """Return the synthesized audio, or None and the reason."""
    measured = collected.built.get(spoken.SPEAKS)
    if measured is None:
        return None, f"{spoken.SPEAKS} is not built here; run dvc repro"
    try:
        return spoken.speak(measured, collected.threads), ""
    except UserError as problem:
        return None, str(problem)


def _takes(audio: spoken.Spoken) -> list[tuple[spoken.Take, Markup, str]]:
    """Return each take with its spectrogram and its WAV as a data URI."""
    return [
        (
            take,
            figures.spectrogram(take, audio.rate, f"Spectrogram of the take by {take.name}"),
            spoken.wav_uri(take, audio.rate),
        )
        for take in audio.takes
    ]
