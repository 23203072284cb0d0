"""What the page is made from, gathered as typed data: parameters, artifacts, reports. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from omni.component import require_built
from omni.params import Params, load
from omni.streamed import data_file
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from validate.report import measured
from validate.subject import FLOAT, QUANTIZED, REPORTS, Subject, graph_bytes, require_current, subjects

__all__ = ["MEASUREMENTS", "Collected", "Component", "Graph", "Weights", "collect"]

MEASUREMENTS = ("contract", "parity", "latency", "memory", "gate")
_TOOLS = ("onnx", "onnx-ir", "onnxruntime", "numpy", "torch", "transformers", "safetensors", "dvc")
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Weights:
    """Where a component's weights come from: ``kind`` is synthetic, hub or folder; "" where there are none."""

    kind: str
    origin: str


@dataclass(frozen=True)
class Graph:
    """Files of one graph, with the bytes of graph and data together; no quantized one where it stays float32."""

    stem: str
    file: str
    nbytes: int
    data_bytes: int
    quantized_file: str | None
    quantized_nbytes: int | None


@dataclass(frozen=True)
class Component:
    """One component as built, and what its reports say; nothing where they do not say it.

    Attributes:
        name: of the component.
        summary: from its description, and so is ``caveat``.
        weights: where they come from; None where it is not built.
        layers: of its stack, as built; None where it has none.
        graphs: its files.
        schemes: by which its nodes are quantized.
        troubles: by measurement, a sentence on each report that is missing, not readable, or made from other artifacts
            than are here; it ends with the command that mends it.
    """

    name: str
    summary: str
    caveat: str
    weights: Weights | None
    layers: int | None
    graphs: tuple[Graph, ...]
    schemes: tuple[str, ...]
    contract: tuple[measured.Check, ...]
    judged: measured.Judged | None
    accuracy: tuple[measured.Series, ...]
    curves: tuple[measured.Curve, ...]
    variants: tuple[measured.Variant, ...]
    builds: tuple[measured.Build, ...]
    sessions: tuple[measured.Session, ...]
    troubles: Mapping[str, str]

    @property
    def status(self) -> str:
        """``red``, ``unproven`` where a report is in doubt or the gate judged nothing, or ``green``."""
        if self.judged and self.judged.green < self.judged.total:
            return "red"
        return "green" if self.judged and self.judged.verdicts and not self.troubles else "unproven"

    @property
    def nbytes(self) -> int:
        return sum(graph.nbytes for graph in self.graphs)

    @property
    def quantized_nbytes(self) -> int | None:
        """Of the quantized graphs, with those that stay float32; None where all do."""
        if all(graph.quantized_nbytes is None for graph in self.graphs):
            return None
        return sum(graph.nbytes if graph.quantized_nbytes is None else graph.quantized_nbytes for graph in self.graphs)


@dataclass(frozen=True)
class Collected:
    """All of it, and the subjects that are built, whose graphs can be run."""

    components: tuple[Component, ...]
    subjects: Mapping[str, Subject]
    threads: int
    versions: Mapping[str, str]


def collect() -> Collected:
    """Gather every component that params.yaml names, is built, or has reports.

    Raises:
        UserError: none is built; params.yaml cannot be read.
    """
    params = load()
    built = require_built()
    reported = sorted(path.parent.name for path in REPORTS.glob("*/*.json"))
    names = list(dict.fromkeys([*params.components, *built, *reported]))
    there: dict[str, Subject] = {}
    found = []
    for name in names:
        absent = ""
        try:
            there[name] = subjects([name])[0][0]
        except UserError as problem:
            absent = str(problem)
        found.append(_component(name, there.get(name), absent, params))
    return Collected(tuple(found), there, params.sessions.threads, _versions())


def _component(name: str, subject: Subject | None, absent: str, params: Params) -> Component:
    troubles: dict[str, str] = {}
    reports = {measurement: _report(name, subject, absent, measurement, troubles) for measurement in MEASUREMENTS}

    def read(measurement: str, parse: Callable[[dict[str, Any]], Parsed], otherwise: Parsed) -> Parsed:
        try:
            content = reports[measurement]
            return otherwise if content is None else parse(content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            said = " ".join(str(error).split())
            path = REPORTS / name / f"{measurement}.json"
            troubles[measurement] = f"{path}: is not what this version writes ({said}); run dvc repro"
            return otherwise

    judged = read("gate", measured.judged, None)
    _doubt_other_limits(name, reports["gate"], params, troubles)
    verdicts = judged.verdicts if judged else ()
    return Component(
        name,
        subject.component.summary if subject else "",
        subject.component.caveat if subject else "",
        _weights(subject) if subject else None,
        _layers(subject) if subject else None,
        tuple(_graphs(subject)) if subject else (),
        tuple(_schemes(subject)) if subject else (),
        read("contract", measured.contract, ()),
        judged,
        read("parity", lambda content: measured.accuracy(content, verdicts), ()),
        read("latency", measured.curves, ()),
        read("latency", measured.variants, ()),
        read("memory", measured.builds, ()),
        read("memory", measured.sessions, ()),
        troubles,
    )


def _report(
    name: str, subject: Subject | None, absent: str, measurement: str, troubles: dict[str, str]
) -> dict[str, Any] | None:
    """Return a report's content, or None; note in ``troubles`` what is wrong with it."""
    path = REPORTS / name / f"{measurement}.json"
    if not path.is_file():
        troubles[measurement] = f"{path}: missing; run python -m validate {measurement} {name}, or dvc repro"
        return None
    try:
        content = artifact.read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: not a report; run dvc repro")
    except UserError as problem:
        troubles[measurement] = str(problem)
        return None
    if subject is None:
        troubles[measurement] = f"{path}: made from artifacts that are not here ({absent})"
        return content
    try:
        require_current(subject, content, path)
    except UserError as problem:
        troubles[measurement] = str(problem)
    return content


def _doubt_other_limits(name: str, gate: dict[str, Any] | None, params: Params, troubles: dict[str, str]) -> None:
    block = {**params.blocks, **params.composed_blocks}.get(name)
    if gate is None or block is None or "gate" in troubles:
        return
    if gate.get("limits") != block.gates.model_dump(mode="json"):
        path = REPORTS / name / "gate.json"
        troubles["gate"] = (
            f"{path}: judged by other limits than stand in params.yaml; run python -m validate gate {name}"
        )


def _weights(subject: Subject) -> Weights:
    path = subject.companions / "source.json"
    if not path.is_file():
        return Weights("", "not recorded")
    source = artifact.read_json(path)
    if not source.get("tensors"):
        return Weights("", "none: a transform")
    more = [f"{key} {source[key]}" for key in ("commit", "seed") if key in source]
    return Weights(source["kind"], ", ".join([source["checkpoint"], *more]))


def _layers(subject: Subject) -> int | None:
    found: Any = read_config(subject.companions)
    for key in subject.component.depth:
        found = found[key]
    return found if subject.component.depth else None


def _graphs(subject: Subject) -> list[Graph]:
    found = []
    for stem, part in subject.each.items():
        floating, quantized = part.graphs[FLOAT], part.graphs.get(QUANTIZED)
        found.append(
            Graph(
                stem,
                floating.name,
                graph_bytes(floating),
                data_file(floating).stat().st_size,
                quantized.name if quantized else None,
                graph_bytes(quantized) if quantized else None,
            )
        )
    return found


def _schemes(subject: Subject) -> list[str]:
    return sorted({node["scheme"] for part in subject.each.values() for node in part.quantization.values()})


def _versions() -> dict[str, str]:
    found = {}
    for tool in _TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:  # torch and transformers: nothing here needs them
            continue
    return found
