"""The schema of ``params.yaml``: every parameter of the pipeline, typed and validated.

Parameters of a graph are in a table keyed by the graph's file stem, and parameters of a parity check in a table keyed
by the check's name, even where there is only one. Keys of a table by graph may be glob patterns, because the
projection's stem depends on the checkpoint's name. The first key that matches counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from omni.forms import Positive, Repository, Revision, Strict
from omni.limits import GraphLimits, Limits
from omni.patterns import first_match, unmatched
from omni.quantization import CalibrateParams, QuantizeParams
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "ComponentParams",
    "ComposedParams",
    "ExportParams",
    "GraphParams",
    "InputParams",
    "LatencyParams",
    "MeasuredParams",
    "ModelParams",
    "PublishParams",
    "SampledParams",
    "SessionParams",
    "SyntheticCodes",
    "SyntheticParams",
    "VariantParams",
]


class ModelParams(Strict):
    """Source of the checkpoint.

    Attributes:
        source: ``synthetic``, ``hub``, or a folder.
        repository: The checkpoint's repository on the hub.
        revision: Branch, tag or commit of the repository.
        seed: Seed of synthetic weights.
        widths: Name of the configuration of synthetic weights.
        layers: Number of layers in each stack of synthetic weights.
        speakers: Source of spk_dict.pt, if it is not in the checkpoint: a file, a folder, or a repository on the hub.
        speakers_sha256: SHA-256 that the file must have; None accepts any.
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
        """The folder in ``source``; None if the checkpoint is synthetic, or on the hub."""
        return None if self.source in ("synthetic", "hub") else Path(self.source)


class SessionParams(Strict):
    """Settings of every measurement's sessions.

    Attributes:
        threads: Intra-op threads of every session; 0 lets ONNX Runtime choose.
        patience_seconds: Time in seconds for repeating one component's latency measurements while other processes
            are busy.
    """

    threads: Annotated[int, Field(ge=0, le=1024)]
    patience_seconds: Annotated[float, Field(ge=0)]


class SyntheticParams(Strict):
    """Synthetic hidden states with outlier channels, as a language model's have them."""

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
    """Return the tag of synthetic codes or of synthetic activations, for a table or for an instance.

    Without a tag, pydantic would validate against every type of the union and report the errors of all.
    """
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "[codes]" if {"clips", "codes"} & set(keys) else "[activations]"


class InputParams(Strict):
    """Inputs of a component: another component's outputs, files in a folder, or synthetic activations or codes.

    Attributes:
        source: A component's name, a folder, or ``synthetic``.
        clips: Number of calibration clips, and of held-out clips, that are used, the first ones; None uses all. As
            many texts are used.
        replies: Folder of what is replied to each clip, ``SPLIT/CLIP.txt``; None: no replies. Only the Thinker
            reads them.
        texts: Folder of texts and dialogues whose embeddings are used as well, after the clips; None uses none.
        synthetic: Distribution of synthetic inputs.
    """

    source: Annotated[str, Field(min_length=1)]
    clips: Positive | None = None
    replies: Annotated[str, Field(min_length=1)] | None = None
    texts: Annotated[str, Field(min_length=1)] | None = None
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
    """A sampler variant of token2wav's ODE: see ``qwen_omni_onnx.sampler.Variant``."""

    solver: Literal["rk4", "abm2"]
    intervals: Positive


class ExportParams(Strict):
    """How a component's graphs are exported.

    Attributes:
        store: Type in which float32 graphs store matrices: ``float32``, or ``checkpoint`` for the checkpoint's own
            bfloat16 or float16 and a Cast behind it, which takes half the disk and computes the same bits.
    """

    store: Literal["float32", "checkpoint"]


class SampledParams(ExportParams):
    """How graphs are exported that solve an ODE.

    Attributes:
        guidance_scale: Scale of classifier-free guidance.
        variants: Variants of the ODE's solver, by name.
    """

    guidance_scale: Annotated[float, Field(ge=0)]
    variants: Annotated[dict[str, VariantParams], Field(min_length=1)]

    @field_validator("variants")
    @classmethod
    def _has_reference(cls, value: dict[str, VariantParams]) -> dict[str, VariantParams]:
        reference = value.get("reference")
        if reference is None or reference.solver != "rk4":
            raise ValueError(
                "one must be named reference, with solver rk4, as transformers has it: the others are measured "
                "against it"
            )
        return value


class LatencyParams(Strict):
    """Settings of ``validate latency`` for a graph.

    Attributes:
        lengths: Lengths that are timed.
        works_at: The component's typical length, one of ``lengths``, at which a quantized graph must be the faster one.
        rounds: Minimum number of timed runs of each graph at a length; half of it where that takes over half a minute.
        seconds: Minimum duration of the timed runs at a length, in seconds.
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
    """Parameters of one graph, collected from its component's block; without ``quantize`` it stays float32.

    Attributes:
        key: The graph's key in the table ``quantize``; its file stem if it has none.
        calibrate: Calibration of its activations; None if they are not calibrated.
        quantize: Quantization of the graph; None if it stays float32.
        latency: Settings of ``validate latency``.
        memory: Length at which ``validate memory`` runs the graph.
        limits: The graph's limits.
    """

    key: str
    calibrate: CalibrateParams | None
    quantize: QuantizeParams | None
    latency: LatencyParams
    memory: Positive
    limits: GraphLimits


class PublishParams(Strict):
    """What is published of a component.

    Attributes:
        float32: Whether a float32 graph is published where there is a quantized one.
    """

    float32: bool


class MeasuredParams(Strict):
    """Parameters of every component: its golden cases, measurements and limits.

    Attributes:
        cases: Golden cases, each as the lengths of the batch's rows.
        latency: Settings of ``validate latency``, by graph.
        memory: Length at which ``validate memory`` runs each graph.
        gates: Limits of the component.
        publish: What is published of it.
    """

    cases: Annotated[list[Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)]
    latency: dict[str, LatencyParams]
    memory: dict[str, Positive]
    gates: Limits
    publish: PublishParams

    def graph(self, stem: str) -> GraphParams:
        """Return the parameters of one graph.

        Raises:
            UserError: ``latency`` or ``memory`` has no entry for the graph.
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
        """Check that the keys of all tables by graph match graphs of the component.

        Args:
            name: Name of the component.
            stems: File stems of its graphs.

        Raises:
            UserError: A key matches no graph.
        """
        for table in ("calibrate", "quantize", "latency", "memory"):
            for key in unmatched(self._table(table), stems):
                raise UserError(f"params.yaml: {name}.{table}.{key}: no such graph; there are: {', '.join(stems)}")

    def _table(self, name: str) -> Mapping[str, Any]:
        return getattr(self, name, {})


def _export_kind(value: Any) -> str:
    """Return the tag of the parameters of a component's export, for a table or for an instance."""
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "[sampled]" if {"guidance_scale", "variants"} & set(keys) else "[stored]"


class ComponentParams(MeasuredParams):
    """The block of a component that has tensors of its own.

    Attributes:
        inputs: Source of the inputs.
        export: How the graphs are exported; None if there is nothing to choose.
        calibrate: Calibration of activations, by graph.
        quantize: Quantization, by graph; a graph that no key matches stays float32.
    """

    inputs: InputParams
    export: (
        Annotated[
            Annotated[ExportParams, Tag("[stored]")] | Annotated[SampledParams, Tag("[sampled]")],
            Discriminator(_export_kind),
        ]
        | None
    )
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
        for key, quantize in self.quantize.items():
            if quantize.static and self.calibrate[key].headroom is None:
                raise ValueError(f"calibrate.{key}.headroom: int8-static needs a number")
        if not self.quantize:
            return self
        missing = [] if any(check.judges_quantized for check in self.gates.checks.values()) else ["checks"]
        missing += ["quantized_share"] if self.gates.quantized_share is None else []
        missing += [f"graphs.{key}" for key in self.quantize if self.gates.graph(key).latency_share is None]
        if missing:
            required = {
                "checks": "one of gates.checks must have below_bfloat16_median_db, quantized_sqnr_db or quantized_top1",
                "quantized_share": "gates.quantized_share must be given",
            }
            message = required.get(missing[0], f"gates.{missing[0]}.latency_share must be given")
            raise ValueError(f"{message}: this component is quantized")
        return self


class ComposedParams(MeasuredParams):
    """The block of a component that is composed of others, which have blocks of their own.

    Attributes:
        variant: Name of token2wav's sampler variant that the graph runs.
    """

    variant: Annotated[str, Field(min_length=1)]
