"""What the page is made from: parameters, artifacts, and the reports as those who wrote them have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from omni.component import require_built
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
from validate.measured import MeasuredComponent, built_components, graph_bytes, require_current

__all__ = ["Collected", "Component", "Graph", "Weights", "by_lengths", "collect"]

_TOOLS = ("onnx", "onnx-ir", "onnxruntime", "numpy", "torch", "transformers", "safetensors", "dvc")
Found = TypeVar("Found", bound=Report)


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
        name: Name of the component.
        summary: From its description, and so is ``caveat``.
        weights: Where they come from; None where it is not built.
        layers: Layers of its stack, as built; None where it has none.
        graphs: Its files.
        schemes: Schemes by which its nodes are quantized.
        contract: Checks of the contract.
        gate: What the gate said; None where that is not known.
        checks: How golden cases came out, by check and by kind.
        latency: Times of each graph, by file stem.
        variants: What ways to solve the ODE cost.
        build: Memory of each building stage.
        sessions: Memory of a session, by graph and by kind.
        troubles: By measurement, a sentence on each report that is missing, not readable, or made from other artifacts
            than are here; it ends with the command that mends it.
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
    latency: Mapping[str, GraphLatency]
    variants: list[VariantCost]
    build: Mapping[str, BuildMemory]
    sessions: Mapping[str, Mapping[str, SessionMemory]]
    troubles: Mapping[str, str]

    @property
    def status(self) -> str:
        """``red``, ``unproven`` where a report is in doubt or the gate judged nothing, or ``green``."""
        if self.green < self.total:
            return "red"
        return "green" if self.gate and self.gate.verdicts and not self.troubles else "unproven"

    @property
    def green(self) -> int:
        """How many verdicts of the gate are green: seen from value and limit, not taken from the file."""
        return sum(verdict.ok for verdict in self.gate.verdicts) if self.gate else 0

    @property
    def total(self) -> int:
        """How many verdicts there are, and sentences on what else is wrong."""
        return len(self.gate.verdicts) + len(self.gate.wrong) if self.gate else 0

    def limit(self, kind: str, subject: str, metric: str) -> float | None:
        """Return the limit that the gate judged a metric by; None where it did not."""
        verdicts = self.gate.verdicts if self.gate else []
        wanted = (kind, subject, metric)
        return next((v.limit for v in verdicts if (v.kind, v.subject, v.metric) == wanted), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the float32 graphs and their data."""
        return sum(graph.nbytes for graph in self.graphs)

    @property
    def quantized_nbytes(self) -> int | None:
        """Of the quantized graphs, with those that stay float32; None where all do."""
        if all(graph.quantized_nbytes is None for graph in self.graphs):
            return None
        return sum(graph.nbytes if graph.quantized_nbytes is None else graph.quantized_nbytes for graph in self.graphs)


@dataclass(frozen=True)
class Collected:
    """All of it, and the components that are built, whose graphs can be run."""

    components: tuple[Component, ...]
    built: Mapping[str, MeasuredComponent]
    threads: int
    versions: Mapping[str, str]


def collect() -> Collected:
    """Gather every component that params.yaml names, is built, or has reports.

    Raises:
        UserError: None is built; params.yaml cannot be read.
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
    """Order golden cases: single rows before batches, and the short before the long.

    A case's name ends in the lengths of its rows.
    """
    lengths = [int(number) for number in re.findall(r"\d+", case.case)]
    return len(lengths), lengths


def _component(name: str, measured: MeasuredComponent | None, absent: str, params: Params) -> Component:
    troubles: dict[str, str] = {}

    def read(kind: type[Found]) -> Found | None:
        return _report(kind, name, measured, absent, troubles)

    contract, parity, latency, memory, gate = (
        read(ContractReport), read(ParityReport), read(LatencyReport), read(MemoryReport), read(GateReport)
    )  # fmt: skip
    _doubt_other_limits(name, gate, params, troubles)
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
        latency=latency.graphs if latency else {},
        variants=latency.variants if latency else [],
        build=memory.build if memory else {},
        sessions=memory.graphs if memory else {},
        troubles=troubles,
    )


def _report(
    kind: type[Found], name: str, measured: MeasuredComponent | None, absent: str, troubles: dict[str, str]
) -> Found | None:
    """Return a report, or None; note in ``troubles`` what is wrong with it."""
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
        require_current(measured, report)
    except UserError as problem:
        troubles[kind.NAME] = str(problem)
    return report


def _doubt_other_limits(name: str, gate: GateReport | None, params: Params, troubles: dict[str, str]) -> None:
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
        except metadata.PackageNotFoundError:  # torch and transformers: nothing here needs them
            continue
    return found
