"""The reports under ``reports/COMPONENT``, as typed records.

The measuring stages write them, and the gate, the model card, the published manifest and the HTML page read them, all
with these classes. Values of a graph are keyed by its file stem, and values of a parity check by its name, even where
there is only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from omni.overfitting import Overfitting
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
    """Fields of every report.

    Attributes:
        component: Name of the component.
        artifacts: Fingerprints of the measured artifacts, by kind of folder; if they differ, the report is stale.
    """

    NAME: ClassVar[str]

    component: str
    artifacts: dict[str, str]

    @classmethod
    def path(cls, component: str) -> Path:
        """Return the path of the report on a component."""
        return REPORTS / component / f"{cls.NAME}.json"

    @classmethod
    def read(cls, component: str) -> Self:
        """Return the report on a component.

        Raises:
            UserError: The report is missing, or this version does not write such a report.
        """
        path = cls.path(component)
        content = artifact.read_json(path)
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            raise UserError(f"{path}: is not what this version writes ({_first(error)}); run dvc repro") from None

    def require_made_from(self, component: str, artifacts: Mapping[str, str]) -> None:
        """Refuse the report if it was made from other artifacts than these.

        Args:
            component: Name of the component whose report was read.
            artifacts: Fingerprints of the artifacts that are there now, by kind of folder.

        Raises:
            UserError: It was.
        """
        if self.artifacts != artifacts:
            path = self.path(component)
            raise UserError(f"{path}: made from other artifacts than are here now; run dvc repro")

    def write(self) -> None:
        """Write the report to :meth:`path`; a file there is replaced atomically.

        Raises:
            UserError: The report cannot be written.
        """
        artifact.write_json(self.path(self.component), asdict(self))


def _first(error: ValidationError) -> str:
    """Return pydantic's first error, with the path of the value."""
    first = error.errors()[0]
    place = ".".join(str(key) for key in first["loc"])
    return " ".join(f"{place}: {first['msg']}".split()).removeprefix(": ")


@dataclass(frozen=True)
class ContractCheck:
    """Result of one check of the contract.

    Attributes:
        graph: File stem and kind of the graph; ``all`` for a check of all files.
        check: Name of the check.
        ok: Whether the check passed.
        detail: Observed values, or the reason of a failure.
    """

    graph: str
    check: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class ContractReport(Report):
    """Results of ``validate contract``."""

    NAME: ClassVar[str] = "contract"

    checks: list[ContractCheck]


@dataclass(frozen=True, kw_only=True)
class ParityReport(Report):
    """Results of ``validate parity``.

    Attributes:
        near_tie: Margin of near ties, as a share of a row's standard deviation.
        checks: Agreement on the golden cases by check, and by kind of graphs or for PyTorch in bfloat16.
        overfitting: Quantized graphs on calibration's and on held-out recordings, by check, or by graph of several.
    """

    NAME: ClassVar[str] = "parity"

    near_tie: float
    checks: dict[str, dict[str, CheckAgreement]]
    overfitting: dict[str, Overfitting] = field(default_factory=dict)


@dataclass(frozen=True)
class LengthLatency:
    """Times of one graph at one length; comparisons of the two kinds are None where only one kind ran.

    Attributes:
        length: Size of the graph's length axis.
        rounds: Number of timed runs of each kind.
        attempts: Number of measurements; one is repeated while other processes are busy.
        seconds: Duration of all attempts.
        cores_busy_with_other_processes: Mean number of cores that other processes used during the attempts.
        float32_ms: Median time of the float32 graph.
        quantized_ms: Median time of the quantized graph.
        whole_ms: Median time of the quantized graph in one session, if ``quantized_ms`` is a sum over pieces.
        speedup: Median over rounds of float32 / quantized.
        speedup_low, speedup_high: Ends of the speed-up's 95 % interval.
        kernels: Median time in ms of the multiplications alone, by kind.
        ceiling: Speed-up that this machine's quantized kernels would give if nothing else changed.
        share: Share of the ceiling that the quantized graph reaches.
        share_low, share_high: Ends of the share's 95 % interval.
    """

    length: int
    rounds: int
    attempts: int
    seconds: float
    cores_busy_with_other_processes: float
    float32_ms: float
    quantized_ms: float | None = None
    whole_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    kernels: dict[str, float] | None = None
    ceiling: float | None = None
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None

    def ms(self, kind: str) -> float | None:
        """Return the median time of a kind of graph; None if that kind did not run."""
        median: float | None = getattr(self, f"{kind}_ms")
        return median


@dataclass(frozen=True)
class LinearFit:
    """Linear fit of the time over the length: ``ms_each * length + ms``."""

    ms_each: float
    ms: float


@dataclass(frozen=True)
class GraphLatency:
    """Times of one graph at several lengths.

    Attributes:
        axis: Name of the length axis.
        works_at: The component's typical length.
        files: File name of each kind of graph.
        lengths: Times at each length.
        cores_busy_with_other_processes: Mean number of cores that other processes used during the measurement.
        fit: Linear fit of the times of each kind.
        original_note: ``ms_per_token`` and ``ms`` that the original model card gives for this graph; None if it gives
            none.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.
        provider: Execution provider.
        machine: Fingerprint of the machine.
        pieces: Number of pieces that the graph was timed in; its times are sums over them.
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
    pieces: int = 1

    def __post_init__(self) -> None:
        if self.works_at not in [entry.length for entry in self.lengths]:
            raise ValueError(f"works_at is {self.works_at}, which was not timed")
        if QUANTIZED in self.files and any(entry.share is None or entry.ceiling is None for entry in self.lengths):
            raise ValueError("a quantized graph was timed, and a length has no share of the ceiling")


@dataclass(frozen=True)
class VariantCost:
    """Cost of a sampler variant of the ODE, and its distance from the float32 reference variant and from the solution.

    Attributes:
        graphs: Kind of graphs.
        variant: Name of the variant.
        evaluations: Number of evaluations of the ODE's velocity.
        cost: Time as a share of the reference variant's on the same graphs, the median of interleaved rounds.
        seconds_each: Time for a second of speech in seconds, without the vocoder.
        mel_db: SQNR of the mel frames in dB.
        mel_median_db: SQNR of the median mel frame in dB.
        finer_db, finer_median_db: The same, compared with PyTorch's solution on more points of time.
        waveform_db: SQNR of the waveform in dB.
        stft: Multi-resolution STFT distance of the waveform.
    """

    graphs: str
    variant: str
    evaluations: int
    cost: float
    seconds_each: float
    mel_db: float
    mel_median_db: float
    finer_db: float
    finer_median_db: float
    waveform_db: float
    stft: float


@dataclass(frozen=True, kw_only=True)
class LatencyReport(Report):
    """Results of ``validate latency``, by graph; and those of the sampler variants, if the component has any."""

    NAME: ClassVar[str] = "latency"

    graphs: dict[str, GraphLatency]
    variants: list[VariantCost] = field(default_factory=list)


@dataclass(frozen=True)
class SweptGraph:
    """Session options that were timed for one graph.

    Attributes:
        axis: Name of the length axis.
        length: Length of the inputs.
        best: Fastest options of each kind of graph: optimization, threads, provider, and the median time in ms.
        tried: All timed options of each kind of graph.
        machine: Fingerprint of the machine.
    """

    axis: str
    length: int
    best: dict[str, dict[str, Any]]
    tried: dict[str, list[dict[str, Any]]]
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class SweepReport(Report):
    """Results of ``validate latency --sweep``, by graph."""

    NAME: ClassVar[str] = "sessions"

    graphs: dict[str, SweptGraph]


@dataclass(frozen=True)
class BuildMemory:
    """Memory of a process that builds an artifact.

    Attributes:
        libraries_bytes: Peak memory after all imports, before the work began.
        peak_bytes: Peak memory at the end.
        rebuilt_the_same: Whether a second build gave the same bytes; None if there was no second build.
    """

    libraries_bytes: int
    peak_bytes: int
    rebuilt_the_same: bool | None = None


@dataclass(frozen=True)
class SessionMemory:
    """Memory of a process that loads a graph and runs it once at a length.

    Attributes:
        length: Length of the inputs.
        libraries_bytes: Peak memory of a process that only imports the same libraries.
        peak_bytes: Peak memory at the end.
        data_bytes: Size of the graph's external data; matrices that are stored in 16 bits count as float32.
    """

    length: int
    libraries_bytes: int
    peak_bytes: int
    data_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryReport(Report):
    """Results of ``validate memory``.

    Attributes:
        largest_tensor_bytes: Size of the largest tensor of the float32 graphs.
        build: Memory of ``export`` and, if a graph is quantized, of ``quantize``.
        graphs: Memory of a session, by graph and by kind.
    """

    NAME: ClassVar[str] = "memory"

    largest_tensor_bytes: int
    build: dict[str, BuildMemory]
    graphs: dict[str, dict[str, SessionMemory]]


@dataclass(frozen=True, kw_only=True)
class GateReport(Report):
    """Results of ``validate gate``.

    Attributes:
        passed: Whether every limit is met and the reports have no other faults.
        verdicts: Verdict on every limit.
        wrong: Messages on other faults of the reports.
        limits: The limits in ``params.yaml`` at that time.
        warnings: What a reader should know, and no limit judges.
    """

    NAME: ClassVar[str] = "gate"

    passed: bool
    verdicts: list[Verdict]
    wrong: list[str]
    limits: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BuildReport(Report):
    """Peak memory of a build stage, which the stage's process records when it ends."""

    memory: BuildMemory


@dataclass(frozen=True, kw_only=True)
class ExportReport(BuildReport):
    """Peak memory of an export."""

    NAME: ClassVar[str] = "export"


@dataclass(frozen=True, kw_only=True)
class QuantizeReport(BuildReport):
    """Peak memory of composing quantized graphs."""

    NAME: ClassVar[str] = "quantize"
