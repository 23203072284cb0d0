"""Collects the page's data: parameters, artifacts, and the reports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from omni.component import require_built
from omni.overfitting import Overfitting
from omni.params import Params, load
from omni.reports import (
    REPORTS,
    BuildMemory,
    ContractCheck,
    ContractReport,
    GateReport,
    GraphLatency,
    LatencyReport,
    MemoryReport,
    ParityReport,
    Report,
    SessionMemory,
    VariantCost,
)
from omni.streamed import data_file
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED, CaseAgreement, CheckAgreement
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from validate.measured import MeasuredComponent, built_components, graph_bytes

__all__ = ["Collected", "Component", "Graph", "Weights", "by_lengths", "collect"]

_TOOLS = ("onnx", "onnx-ir", "onnxruntime", "numpy", "torch", "transformers", "safetensors", "dvc")
ReportType = TypeVar("ReportType", bound=Report)


@dataclass(frozen=True)
class Weights:
    """Source of a component's weights: ``kind`` is synthetic, hub or folder; "" if the component has no weights."""

    kind: str
    origin: str


@dataclass(frozen=True)
class Graph:
    """Files of one graph, with sizes of graph and data; a graph that stays float32 has no quantized file."""

    stem: str
    file: str
    nbytes: int
    data_bytes: int
    quantized_file: str | None
    quantized_nbytes: int | None


@dataclass(frozen=True)
class Component:
    """One component as built, and the content of its reports; fields of missing reports are empty.

    Attributes:
        name: Name of the component.
        summary: Summary from the component's description.
        caveat: Caveat from the component's description.
        weights: Source of the weights; None if the component is not built.
        layers: Number of layers, as built; None if the component has no layers.
        graphs: Files of the graphs.
        schemes: Quantization schemes of the nodes.
        contract: Results of the contract's checks.
        gate: Results of the gate; None if there is no report.
        checks: Agreement with the golden cases, by check and by kind.
        overfitting: Quantized graphs on calibration's and on held-out recordings, by check, or by graph of several.
        latency: Times of each graph, by file stem.
        variants: Costs of the sampler variants.
        build: Memory of each build stage.
        sessions: Memory of a session, by graph and by kind.
        troubles: Message on each report that is missing, unreadable or about other artifacts, by measurement; it ends
            with the command that helps.
    """

    name: str
    summary: str
    caveat: str
    weights: Weights | None
    layers: int | None
    graphs: tuple[Graph, ...]
    schemes: tuple[str, ...]
    contract: list[ContractCheck]
    gate: GateReport | None
    checks: Mapping[str, Mapping[str, CheckAgreement]]
    overfitting: Mapping[str, Overfitting]
    latency: Mapping[str, GraphLatency]
    variants: list[VariantCost]
    build: Mapping[str, BuildMemory]
    sessions: Mapping[str, Mapping[str, SessionMemory]]
    troubles: Mapping[str, str]

    @property
    def status(self) -> str:
        """``red``, ``green``, or ``unproven`` if a report has troubles or the gate judged nothing."""
        if self.green < self.total:
            return "red"
        return "green" if self.gate and self.gate.verdicts and not self.troubles else "unproven"

    @property
    def green(self) -> int:
        """Number of the gate's green verdicts, computed from values and limits rather than read from the report."""
        return sum(verdict.ok for verdict in self.gate.verdicts) if self.gate else 0

    @property
    def total(self) -> int:
        """Number of verdicts and of messages on other faults."""
        return len(self.gate.verdicts) + len(self.gate.wrong) if self.gate else 0

    def limit(self, kind: str, subject: str, metric: str) -> float | None:
        """Return the limit by which the gate judged a metric; None if it did not judge it."""
        verdicts = self.gate.verdicts if self.gate else []
        wanted = (kind, subject, metric)
        return next((v.limit for v in verdicts if (v.kind, v.subject, v.metric) == wanted), None)

    @property
    def nbytes(self) -> int:
        """Size of the float32 graphs and their data."""
        return sum(graph.nbytes for graph in self.graphs)

    @property
    def quantized_nbytes(self) -> int | None:
        """Size of the quantized graphs, including graphs that stay float32; None if all do."""
        if all(graph.quantized_nbytes is None for graph in self.graphs):
            return None
        return sum(graph.nbytes if graph.quantized_nbytes is None else graph.quantized_nbytes for graph in self.graphs)


@dataclass(frozen=True)
class Collected:
    """Data of all components, and the components that are built, whose graphs can run."""

    components: tuple[Component, ...]
    built: Mapping[str, MeasuredComponent]
    threads: int
    versions: Mapping[str, str]


def collect() -> Collected:
    """Return the data of every component that is in params.yaml, is built, or has reports.

    Raises:
        UserError: No component is built, or params.yaml cannot be read.
    """
    params = load()
    names = [*params.components, *require_built(), *sorted(path.parent.name for path in REPORTS.glob("*/*.json"))]
    built: dict[str, MeasuredComponent] = {}
    found = []
    for name in dict.fromkeys(names):
        absent = ""
        try:
            built[name] = built_components([name])[0][0]
        except UserError as problem:
            absent = str(problem)
        found.append(_component(name, built.get(name), absent, params))
    return Collected(tuple(found), built, params.sessions.threads, _versions())


def by_lengths(case: CaseAgreement) -> tuple[int, list[int]]:
    """Return the sort key of a golden case: single rows before batches, short rows before long ones.

    A case's name ends in the lengths of its rows.
    """
    lengths = [int(number) for number in re.findall(r"\d+", case.case)]
    return len(lengths), lengths


def _component(name: str, measured: MeasuredComponent | None, absent: str, params: Params) -> Component:
    troubles: dict[str, str] = {}

    def read(kind: type[ReportType]) -> ReportType | None:
        return _report(kind, name, measured, absent, troubles)

    contract, parity, latency, memory, gate = (
        read(ContractReport), read(ParityReport), read(LatencyReport), read(MemoryReport), read(GateReport)
    )  # fmt: skip
    _note_other_limits(name, gate, params, troubles)
    return Component(
        name=name,
        summary=measured.component.summary if measured else "",
        caveat=measured.component.caveat if measured else "",
        weights=_weights(measured) if measured else None,
        layers=_layers(measured) if measured else None,
        graphs=tuple(_graphs(measured)) if measured else (),
        schemes=tuple(_schemes(measured)) if measured else (),
        contract=contract.checks if contract else [],
        gate=gate,
        checks=parity.checks if parity else {},
        overfitting=parity.overfitting if parity else {},
        latency=latency.graphs if latency else {},
        variants=latency.variants if latency else [],
        build=memory.build if memory else {},
        sessions=memory.graphs if memory else {},
        troubles=troubles,
    )


def _report(
    kind: type[ReportType], name: str, measured: MeasuredComponent | None, absent: str, troubles: dict[str, str]
) -> ReportType | None:
    """Return a report, or None if it cannot be read; add its faults to ``troubles``."""
    path = kind.path(name)
    if not path.is_file():
        troubles[kind.NAME] = f"{path}: missing; run python -m validate {kind.NAME} {name}, or dvc repro"
        return None
    try:
        report = kind.read(name)
    except UserError as problem:
        troubles[kind.NAME] = str(problem)
        return None
    if measured is None:
        troubles[kind.NAME] = f"{path}: made from artifacts that are not here ({absent})"
        return report
    try:
        report.require_made_from(name, measured.fingerprints())
    except UserError as problem:
        troubles[kind.NAME] = str(problem)
    return report


def _note_other_limits(name: str, gate: GateReport | None, params: Params, troubles: dict[str, str]) -> None:
    block = {**params.blocks, **params.composed_blocks}.get(name)
    if gate is None or block is None or "gate" in troubles:
        return
    if gate.limits != block.gates.model_dump(mode="json"):
        troubles["gate"] = (
            f"{gate.path(name)}: judged by other limits than stand in params.yaml; run python -m validate gate {name}"
        )


def _weights(measured: MeasuredComponent) -> Weights:
    path = measured.companions / "source.json"
    if not path.is_file():
        return Weights("", "not recorded")
    source = artifact.read_json(path)
    if not source.get("tensors"):
        return Weights("", "none: a transform")
    more = [f"{key} {source[key]}" for key in ("commit", "seed") if key in source]
    return Weights(source["kind"], ", ".join([source["checkpoint"], *more]))


def _layers(measured: MeasuredComponent) -> int | None:
    found: Any = read_config(measured.companions)
    for key in measured.component.depth:
        found = found[key]
    return found if measured.component.depth else None


def _graphs(measured: MeasuredComponent) -> list[Graph]:
    found = []
    for stem, graph in measured.graphs.items():
        floating, quantized = graph.files[FLOAT], graph.files.get(QUANTIZED)
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


def _schemes(measured: MeasuredComponent) -> list[str]:
    return sorted({node["scheme"] for graph in measured.graphs.values() for node in graph.quantization.values()})


def _versions() -> dict[str, str]:
    found = {}
    for tool in _TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:  # torch and transformers are optional here
            continue
    return found
