"""Collects the artifacts and reports of a component, and checks that it passed the gate and has not changed since."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from components import component
from omni.component import Component, artifact_path
from omni.params import MeasuredParams, Params
from omni.reports import ContractReport, GateReport, LatencyReport, MemoryReport, ParityReport, Report, SweepReport
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.identity import Model

__all__ = ["Evidence", "gather"]

ReportType = TypeVar("ReportType", bound=Report)


@dataclass(frozen=True)
class Evidence:
    """Artifacts, reports and parameters that a published folder is made from.

    Attributes:
        component: Description of the component.
        params: The component's block of params.yaml.
        folders: ``onnx``, ``quantized`` and ``reference``, each checked against its manifest.
        source: Content of ``source.json``, the source of the weights.
        model: Name and licence of the model, from ``source.json``.
        quantization: Quantization of each MatMul and convolution, by graph.
        parity: Results of ``validate parity``.
        latency: Results of ``validate latency``.
        gate: Results of ``validate gate``.
        sessions: Best session options by graph and kind; empty if no sweep was run for these artifacts.
    """

    component: Component
    params: MeasuredParams
    folders: dict[str, Path]
    source: dict[str, Any]
    model: Model
    quantization: dict[str, dict[str, dict[str, Any]]]
    parity: ParityReport
    latency: LatencyReport
    gate: GateReport
    sessions: dict[str, dict[str, dict[str, Any]]]

    @property
    def synthetic(self) -> bool:
        """Whether the weights are synthetic."""
        return self.source["kind"] == "synthetic"

    @property
    def schemes(self) -> set[str]:
        """Schemes of all quantized nodes; empty if every graph stays float32."""
        return {entry["scheme"] for nodes in self.quantization.values() for entry in nodes.values()}

    @cached_property
    def floating(self) -> list[str]:
        """Stems of the float32 graphs that are published: all, or those that have no quantized form."""
        stems = self.component.contracts(read_config(self.folders["onnx"]))
        return [stem for stem in stems if self.params.publish.float32 or stem not in self.quantization]

    @property
    def name(self) -> str:
        """Name of the published folder: the model's and the component's, marked if the weights are synthetic."""
        return f"{self.model.slug}-{self.component.name}-onnx" + ("-synthetic" if self.synthetic else "")


def gather(name: str, params: Params) -> Evidence:
    """Collect the evidence for one component.

    Raises:
        UserError: An artifact is damaged; a report is missing, or is about other artifacts; a limit is missed; or the
            limits in params.yaml have changed since.
    """
    description, block = component(name), params.measured(name)
    folders = {kind: artifact_path(kind, name) for kind in ("onnx", "quantized", "reference")}
    manifests = {kind: artifact.check(folder) for kind, folder in folders.items()}
    fingerprints = {kind: artifact.fingerprint(folder) for kind, folder in folders.items()}
    if manifests["quantized"]["made_from"]["onnx"] != fingerprints["onnx"]:
        raise UserError(f"{folders['quantized']}: made from another {folders['onnx']}; run dvc repro")
    if manifests["reference"]["made_from"]["source"] != manifests["onnx"]["made_from"]["source"]:
        raise UserError(f"{folders['reference']}: recorded from other weights than {folders['onnx']}; run dvc repro")
    if (
        description.composed_of
        and manifests["reference"]["made_from"]["quantized"] != manifests["quantized"]["made_from"]["components"]
    ):
        raise UserError(
            f"{folders['reference']}: recorded from other graphs than {folders['quantized']} has; run dvc repro"
        )
    for kind in (ContractReport, MemoryReport):
        _current(kind, name, fingerprints)
    parity, latency = _current(ParityReport, name, fingerprints), _current(LatencyReport, name, fingerprints)
    gate = _current(GateReport, name, fingerprints)
    _require_green(name, gate, block)
    origin = folders["onnx"] / "source.json"
    source = artifact.read_json(origin)
    return Evidence(
        description,
        block,
        folders,
        source,
        Model.of(source, origin),
        manifests["quantized"]["quantization"],
        parity,
        latency,
        gate,
        _sessions(name, fingerprints),
    )


def _current(kind: type[ReportType], name: str, fingerprints: dict[str, str]) -> ReportType:
    report = kind.read(name)
    report.require_made_from(name, fingerprints)
    return report


def _require_green(name: str, gate: GateReport, params: MeasuredParams) -> None:
    red = [*gate.wrong, *(f"{verdict.of}: {verdict.label}" for verdict in gate.verdicts if not verdict.ok)]
    if red or not gate.passed or not gate.verdicts:
        raise UserError(f"{name}: not published, the gate is red: {'; '.join(red) or 'it judged nothing'}")
    if gate.limits != params.gates.model_dump(mode="json"):
        raise UserError(f"{name}: not published, params.yaml has other limits than the gate judged by; run dvc repro")


def _sessions(name: str, fingerprints: dict[str, str]) -> dict[str, dict[str, dict[str, Any]]]:
    if not SweepReport.path(name).is_file():
        return {}
    swept = SweepReport.read(name)
    return {stem: found.best for stem, found in swept.graphs.items()} if swept.artifacts == fingerprints else {}
