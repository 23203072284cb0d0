"""The reports under ``reports/COMPONENT``, as typed records.

Whoever measures writes them, and the gate, the model card, the published manifest and the page read them: all by these
classes. What belongs to a graph stands by the graph's file stem, and what belongs to a check of parity by the check's
name, also where there is one of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import QUANTIZED, CheckAgreement, Verdict
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "REPORTS",
    "BuildMemory",
    "BuildReport",
    "ContractCheck",
    "ContractReport",
    "ExportReport",
    "GateReport",
    "GraphLatency",
    "LatencyReport",
    "LengthLatency",
    "LinearFit",
    "MemoryReport",
    "ParityReport",
    "QuantizeReport",
    "Report",
    "SessionMemory",
    "SweepReport",
    "SweptGraph",
    "VariantCost",
]

REPORTS = Path("reports")
Machine = dict[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every report says.

    Attributes:
        component: Name of the component.
        artifacts: Fingerprints of the artifacts that it was made from, by kind of folder: a report on others is stale.
    """

    NAME: ClassVar[str]

    component: str
    artifacts: dict[str, str]

    @classmethod
    def path(cls, component: str) -> Path:
        """Return where the report on a component lies."""
        return REPORTS / component / f"{cls.NAME}.json"

    @classmethod
    def read(cls, component: str) -> Self:
        """Return the report on a component.

        Raises:
            UserError: It is missing, or not what this version writes.
        """
        path = cls.path(component)
        content = artifact.read_json(path)
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            raise UserError(f"{path}: is not what this version writes ({_first(error)}); run dvc repro") from None

    def write(self) -> None:
        """Write the report where :meth:`path` says, beside its place and renamed.

        Raises:
            UserError: It cannot be written.
        """
        artifact.write_json(self.path(self.component), asdict(self))


def _first(error: ValidationError) -> str:
    """Return pydantic's first complaint, with the place that it is about."""
    first = error.errors()[0]
    place = ".".join(str(key) for key in first["loc"])
    return " ".join(f"{place}: {first['msg']}".split()).removeprefix(": ")


@dataclass(frozen=True)
class ContractCheck:
    """One promise of the contract.

    Attributes:
        graph: File stem and kind of the graph; ``all`` where it is about every file.
        check: What is promised.
        ok: Whether it is kept.
        detail: What was found.
    """

    graph: str
    check: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class ContractReport(Report):
    """What ``validate contract`` found."""

    NAME: ClassVar[str] = "contract"

    checks: list[ContractCheck]


@dataclass(frozen=True, kw_only=True)
class ParityReport(Report):
    """What ``validate parity`` found.

    Attributes:
        near_tie: Margin of near ties, as a share of a row's standard deviation.
        checks: How golden cases came out, by check and by kind: of graphs, or PyTorch in bfloat16.
    """

    NAME: ClassVar[str] = "parity"

    near_tie: float
    checks: dict[str, dict[str, CheckAgreement]]


@dataclass(frozen=True)
class LengthLatency:
    """Times of one graph at one length; what compares the two kinds is None where one kind ran.

    Attributes:
        length: What the inputs hold of the graph's axis.
        rounds: How often each kind ran.
        attempts: How often the length was measured, beside other busy processes.
        seconds: How long all attempts took.
        cores_busy_with_other_processes: Mean of the attempt that counts.
        float32_ms: Median time of the float32 graph.
        quantized_ms: Median time of the quantized graph.
        speedup: Median over rounds of float32 / quantized.
        speedup_low: Lower end of its 95 % interval.
        speedup_high: Upper end of its 95 % interval.
        kernels: Median time in ms of the bare multiplications, by kind.
        ceiling: Speed-up that this machine's own quantized kernels would give, were nothing else to change.
        share: Share of that ceiling that the quantized graph reaches.
        share_low: Lower end of its 95 % interval.
        share_high: Upper end of its 95 % interval.
    """

    length: int
    rounds: int
    attempts: int
    seconds: float
    cores_busy_with_other_processes: float
    float32_ms: float
    quantized_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    kernels: dict[str, float] | None = None
    ceiling: float | None = None
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None

    def ms(self, kind: str) -> float | None:
        """Return the median time of a kind of graph; None where that kind did not run."""
        found: float | None = getattr(self, f"{kind}_ms")
        return found


@dataclass(frozen=True)
class LinearFit:
    """A line through times over length: ``ms_each * length + ms``."""

    ms_each: float
    ms: float


@dataclass(frozen=True)
class GraphLatency:
    """Times of one graph over length.

    Attributes:
        axis: What ``length`` counts.
        works_at: The length that the component mostly works at.
        files: File name of each kind of graph.
        lengths: Times at each length.
        cores_busy_with_other_processes: Mean over the whole measurement.
        fit: A line through the times of each kind.
        original_note: ``ms_per_token`` and ``ms`` that the original model's card gives for this graph; None if none.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.
        provider: Execution provider.
        machine: Fingerprint of the machine.
    """

    axis: str
    works_at: int
    files: dict[str, str]
    lengths: list[LengthLatency]
    cores_busy_with_other_processes: float
    fit: dict[str, LinearFit]
    original_note: dict[str, float] | None
    threads: int
    provider: str
    machine: Machine

    def __post_init__(self) -> None:
        if self.works_at not in [entry.length for entry in self.lengths]:
            raise ValueError(f"works_at is {self.works_at}, which was not timed")
        if QUANTIZED in self.files and any(entry.share is None or entry.ceiling is None for entry in self.lengths):
            raise ValueError("a quantized graph was timed, and a length has no share of the ceiling")


@dataclass(frozen=True)
class VariantCost:
    """What a way to solve the ODE costs, and how far from the float32 reference it ends.

    Attributes:
        graphs: Kind of graphs.
        variant: Name of the variant.
        evaluations: Evaluations of the ODE's velocity.
        of_reference: Rows of the batch that run through the step graph, as a share of the reference's.
        cost: Time as a share of the same graphs' reference, the median of interleaved rounds.
        seconds_each: Time for a second of speech, without the vocoder.
        mel_db: SQNR of the mel frames.
        waveform_db: SQNR of the waveform.
        stft: Multi-resolution STFT distance of the waveform.
    """

    graphs: str
    variant: str
    evaluations: int
    of_reference: float
    cost: float
    seconds_each: float
    mel_db: float
    waveform_db: float
    stft: float


@dataclass(frozen=True, kw_only=True)
class LatencyReport(Report):
    """What ``validate latency`` found, by graph; and of ways to solve the ODE, if the component has any."""

    NAME: ClassVar[str] = "latency"

    graphs: dict[str, GraphLatency]
    variants: list[VariantCost] = field(default_factory=list)


@dataclass(frozen=True)
class SweptGraph:
    """Session options that were tried for one graph.

    Attributes:
        axis: What ``length`` counts.
        length: Length of the inputs.
        best: The fastest options of each kind of graph: optimization, threads, provider, and the median time in ms.
        tried: All options of each kind of graph.
        machine: Fingerprint of the machine.
    """

    axis: str
    length: int
    best: dict[str, dict[str, Any]]
    tried: dict[str, list[dict[str, Any]]]
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class SweepReport(Report):
    """What ``validate latency --sweep`` found, by graph."""

    NAME: ClassVar[str] = "sessions"

    graphs: dict[str, SweptGraph]


@dataclass(frozen=True)
class BuildMemory:
    """Memory of a process that builds an artifact.

    Attributes:
        libraries_bytes: Peak before the work began, when all that it imports was there.
        peak_bytes: Peak at its end.
        rebuilt_the_same: Whether it gave the same bytes as the artifact; None where it was not run again.
    """

    libraries_bytes: int
    peak_bytes: int
    rebuilt_the_same: bool | None = None


@dataclass(frozen=True)
class SessionMemory:
    """Memory of a process that loads a graph and runs it at a length.

    Attributes:
        length: Length of the inputs.
        libraries_bytes: Peak of a process that does nothing but import what this one does.
        peak_bytes: Peak at its end.
        data_bytes: Size of the graph's external data.
    """

    length: int
    libraries_bytes: int
    peak_bytes: int
    data_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryReport(Report):
    """What ``validate memory`` found.

    Attributes:
        largest_tensor_bytes: Size of the largest tensor of the float32 graphs.
        build: Memory of ``export`` and, where something is quantized, of ``quantize``.
        graphs: Memory of a session, by graph and by kind.
    """

    NAME: ClassVar[str] = "memory"

    largest_tensor_bytes: int
    build: dict[str, BuildMemory]
    graphs: dict[str, dict[str, SessionMemory]]


@dataclass(frozen=True, kw_only=True)
class GateReport(Report):
    """What ``validate gate`` said.

    Attributes:
        passed: Whether every limit was kept and nothing else was wrong.
        verdicts: One for every limit.
        wrong: A sentence for everything else that is wrong with the reports.
        limits: The limits that it judged by, as ``params.yaml`` gave them.
    """

    NAME: ClassVar[str] = "gate"

    passed: bool
    verdicts: list[Verdict]
    wrong: list[str]
    limits: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BuildReport(Report):
    """What memory a building stage took: written by the process itself at its end."""

    memory: BuildMemory


@dataclass(frozen=True, kw_only=True)
class ExportReport(BuildReport):
    """What memory an export took."""

    NAME: ClassVar[str] = "export"


@dataclass(frozen=True, kw_only=True)
class QuantizeReport(BuildReport):
    """What memory it took to compose quantized graphs."""

    NAME: ClassVar[str] = "quantize"
