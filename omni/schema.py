"""The schema of ``params.yaml``: every knob of the pipeline, typed and validated.

What belongs to a graph stands in a table by the graph's file stem, and what belongs to a check of parity in a table by
the check's name, also where there is one of it. Keys of a table by graph may be patterns, as file names have them: the
projection's stem follows the checkpoint's name. The first key that matches counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from omni.forms import Positive, Repository, Revision, Share, Strict
from omni.limits import GraphLimits, Limits
from omni.patterns import first_match, unmatched
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "CalibrateParams",
    "ComponentParams",
    "ComposedParams",
    "ExportParams",
    "GraphParams",
    "InputParams",
    "LatencyParams",
    "MeasuredParams",
    "ModelParams",
    "QuantizeParams",
    "Scheme",
    "SessionParams",
    "SyntheticCodes",
    "SyntheticParams",
    "VariantParams",
]

Scheme = Literal["int8-token", "int8-tensor", "int8-static", "int8-block", "int4-block", "int4-import", "float32"]
_UNCALIBRATED = ("int8-block", "int4-block", "int4-import", "float32")


class ModelParams(Strict):
    """Where the checkpoint comes from.

    Attributes:
        source: ``synthetic``, ``hub``, or a folder.
        repository: The checkpoint's repository on the hub.
        revision: Branch, tag or commit of the repository.
        seed: Seed of synthetic weights.
        widths: Configuration of synthetic weights.
        layers: Layers in each stack of synthetic weights.
        speakers: Where spk_dict.pt is, if not in the checkpoint: a file, a folder, or a repository on the hub.
        speakers_sha256: SHA-256 that the file must have; any, if None.
    """

    source: Annotated[str, Field(min_length=1)]
    repository: Repository
    revision: Revision
    seed: Annotated[int, Field(ge=0)]
    widths: Literal["7b", "3b", "tiny", "tiny-3b"]
    layers: Positive | Literal["full"]
    speakers: Annotated[str, Field(min_length=1)] | None
    speakers_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None

    @property
    def folder(self) -> Path | None:
        """The folder that ``source`` names; None if the checkpoint is synthetic, or on the hub."""
        return None if self.source in ("synthetic", "hub") else Path(self.source)


class SessionParams(Strict):
    """How every measurement runs.

    Attributes:
        threads: Intra-op threads of every session; 0 lets ONNX Runtime choose.
        patience_seconds: How long one component's latency may be measured again beside busy processes.
    """

    threads: Annotated[int, Field(ge=0, le=1024)]
    patience_seconds: Annotated[float, Field(ge=0)]


class SyntheticParams(Strict):
    """Synthetic hidden states with the outliers of a language model's."""

    seed: Annotated[int, Field(ge=0)]
    outlier_channels: Annotated[int, Field(ge=0)]
    outlier_range: tuple[float, float]
    token_spread: Annotated[float, Field(ge=0)]
    batches: Positive
    tokens: Positive

    @field_validator("outlier_range", mode="before")
    @classmethod
    def _ordered(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
            if not 0 < value[0] <= value[1]:
                raise ValueError("two positive numbers, the smaller one first")
            return (float(value[0]), float(value[1]))
        raise ValueError("a list of two positive numbers")


class SyntheticCodes(Strict):
    """Synthetic codes, all equally likely."""

    seed: Annotated[int, Field(ge=0)]
    clips: Annotated[int, Field(ge=2)]
    codes: Positive


def _synthetic_kind(value: Any) -> str:
    """Tell synthetic codes from synthetic activations, as read or as validated.

    Pydantic tries each type of a union and complains of all; told which one is meant, it complains of that.
    """
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "[codes]" if {"clips", "codes"} & set(keys) else "[activations]"


class InputParams(Strict):
    """What the component is fed: another component's outputs, files in a folder, or synthetic activations or codes.

    Attributes:
        source: A component's name, a folder, or ``synthetic``.
        clips: How many of the clips that calibrate, and of those that judge, are taken, from the first; None takes all.
        synthetic: How synthetic inputs are drawn.
    """

    source: Annotated[str, Field(min_length=1)]
    clips: Positive | None = None
    synthetic: (
        Annotated[
            Annotated[SyntheticParams, Tag("[activations]")] | Annotated[SyntheticCodes, Tag("[codes]")],
            Discriminator(_synthetic_kind),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _described(self) -> InputParams:
        if self.source == "synthetic" and self.synthetic is None:
            raise ValueError("source: synthetic needs a block named synthetic that describes it")
        return self


class VariantParams(Strict):
    """A way to solve token2wav's ODE: see ``qwen_omni_onnx.sampler.Variant``."""

    solver: Literal["rk4", "midpoint", "euler"]
    intervals: Positive
    guidance: Literal["evaluation", "interval"]


class ExportParams(Strict):
    """What goes into the graphs beside weights."""

    guidance_scale: Annotated[float, Field(ge=0)]
    variants: Annotated[dict[str, VariantParams], Field(min_length=1)]

    @field_validator("variants")
    @classmethod
    def _has_reference(cls, value: dict[str, VariantParams]) -> dict[str, VariantParams]:
        reference = value.get("reference")
        if reference is None or (reference.solver, reference.guidance) != ("rk4", "evaluation"):
            raise ValueError(
                "one must be named reference, with solver rk4 and guidance evaluation, as transformers has them: the "
                "others are measured against it"
            )
        return value


class CalibrateParams(Strict):
    """How a graph's activations are calibrated.

    Attributes:
        smoothing: Alpha of SmoothQuant, for all matrix multiplications.
        headroom: Factor by which static ranges are wider than calibration asks for.
        nodes: Other values of ``smoothing`` for single nodes, by name or pattern; the first that matches counts.
    """

    smoothing: Share
    headroom: Annotated[float, Field(ge=1)]
    nodes: dict[str, Share]


class QuantizeParams(Strict):
    """How a graph is quantized.

    Attributes:
        scheme: Scheme of all matrix multiplications and convolutions.
        block: Weights that share a scale, for the block schemes; ``int4-import`` has the checkpoint's own groups.
        nodes: Other schemes for single nodes, by name or pattern; the first that matches counts.
    """

    scheme: Scheme
    block: Literal[16, 32, 64, 128, 256]
    nodes: dict[str, Scheme]

    @property
    def calibrated(self) -> bool:
        """Whether some scheme needs calibrated activations."""
        return any(scheme not in _UNCALIBRATED for scheme in (self.scheme, *self.nodes.values()))

    @property
    def imports(self) -> bool:
        """Whether some scheme takes over what the checkpoint holds in 4 bits."""
        return "int4-import" in (self.scheme, *self.nodes.values())


class LatencyParams(Strict):
    """What ``validate latency`` runs.

    Attributes:
        lengths: Those that are timed.
        works_at: The one of them that the component mostly works at: there a quantized graph must be the faster one.
        rounds: How often each graph runs at a length, at least.
        seconds: How long a length is timed, at least.
    """

    lengths: Annotated[list[Positive], Field(min_length=2)]
    works_at: Positive
    rounds: Annotated[int, Field(ge=20)]
    seconds: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _works_at_what_is_timed(self) -> LatencyParams:
        if self.works_at not in self.lengths:
            raise ValueError(f"works_at is {self.works_at}, which lengths does not hold")
        return self


class GraphParams(Strict):
    """What a component's block says of one of its graphs; one without ``quantize`` stays float32.

    Attributes:
        key: The graph's key in the table by graph under ``quantize``; its file stem if it has none.
        calibrate: How its activations are calibrated; None if they are not.
        quantize: How it is quantized; None if it is not.
        latency: What ``validate latency`` runs.
        memory: Length that ``validate memory`` runs.
        limits: What it is judged by.
    """

    key: str
    calibrate: CalibrateParams | None
    quantize: QuantizeParams | None
    latency: LatencyParams
    memory: Positive
    limits: GraphLimits


class MeasuredParams(Strict):
    """What every component's block says: what is measured, and how it is judged.

    Attributes:
        cases: The golden cases; of each, the length of every row of the batch.
        latency: What ``validate latency`` runs, by graph.
        memory: Length that ``validate memory`` runs, by graph.
        gates: The limits.
    """

    cases: Annotated[list[Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)]
    latency: dict[str, LatencyParams]
    memory: dict[str, Positive]
    gates: Limits

    def graph(self, stem: str) -> GraphParams:
        """Return what the block says of one graph.

        Raises:
            UserError: It does not say what is measured of that graph.
        """
        latency, memory = first_match(self.latency, stem), first_match(self.memory, stem)
        for name, value in (("latency", latency), ("memory", memory)):
            if value is None:
                raise UserError(f"params.yaml: {name} says nothing of {stem}; add it")
        return GraphParams.model_construct(
            key=first_match({key: key for key in self._table("quantize")}, stem) or stem,
            calibrate=first_match(self._table("calibrate"), stem),
            quantize=first_match(self._table("quantize"), stem),
            latency=latency,
            memory=memory,
            limits=self.gates.graph(stem),
        )

    def require_graphs(self, name: str, stems: Collection[str]) -> None:
        """Refuse tables by graph with keys that are no graph of the component.

        Args:
            name: The component.
            stems: File stems of its graphs.

        Raises:
            UserError: A key matches none of them.
        """
        for table in ("calibrate", "quantize", "latency", "memory"):
            for key in unmatched(self._table(table), stems):
                raise UserError(f"params.yaml: {name}.{table}.{key}: no such graph; there are: {', '.join(stems)}")

    def _table(self, name: str) -> Mapping[str, Any]:
        return getattr(self, name, {})


class ComponentParams(MeasuredParams):
    """The block of a component that has tensors of its own.

    Attributes:
        inputs: What it is fed.
        export: What goes into its graphs beside weights; None if nothing does.
        calibrate: How activations are calibrated, by graph.
        quantize: How graphs are quantized, by graph; one that is not named stays float32.
    """

    inputs: InputParams
    export: ExportParams | None
    calibrate: dict[str, CalibrateParams]
    quantize: dict[str, QuantizeParams]

    @model_validator(mode="after")
    def _quantized_is_judged(self) -> ComponentParams:
        needed = {key for key, quantize in self.quantize.items() if quantize.calibrated}
        if not needed <= set(self.calibrate) <= set(self.quantize):
            raise ValueError(
                "calibrate and quantize: name the same graphs; schemes int8-block, int4-block and int4-import can do "
                "without calibrate"
            )
        if not self.quantize:
            return self
        missing = [] if any(check.judges_quantized for check in self.gates.checks.values()) else ["checks"]
        missing += ["quantized_share"] if self.gates.quantized_share is None else []
        missing += [f"graphs.{key}" for key in self.quantize if self.gates.graph(key).latency_share is None]
        if missing:
            asked = {
                "checks": "one of gates.checks must have below_bfloat16_median_db, quantized_sqnr_db or quantized_top1",
                "quantized_share": "gates.quantized_share must be given",
            }
            said = asked.get(missing[0], f"gates.{missing[0]}.latency_share must be given")
            raise ValueError(f"{said}: this component is quantized")
        return self


class ComposedParams(MeasuredParams):
    """The block of a component that is composed of others; how those are fed and quantized, their own blocks say.

    Attributes:
        variant: The one of token2wav's ways to solve the ODE that it has inside.
    """

    variant: Annotated[str, Field(min_length=1)]
