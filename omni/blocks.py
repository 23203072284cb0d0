"""What ``params.yaml`` says of a component: a block of its own for each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from omni.forms import EACH, ONE, LengthOf, Positive, Share, Strict, by_graph
from omni.limits import GateParams, Limits
from omni.sources import InputParams
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "CalibrateParams",
    "ComponentParams",
    "ComposedParams",
    "ExportParams",
    "GraphParams",
    "LatencyParams",
    "MeasuredParams",
    "QuantizeParams",
    "Scheme",
    "VariantParams",
]

Scheme = Literal["int8-token", "int8-tensor", "int8-static", "int8-block", "int4-block", "int4-import", "float32"]
_UNCALIBRATED = ("int8-block", "int4-block", "int4-import", "float32")


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
    """Smoothing exponent, for all matrix multiplications and for those that a pattern names; margin of static ranges.

    Of several patterns of ``nodes`` that match, the first counts.
    """

    smoothing: Share
    headroom: Annotated[float, Field(ge=1)]
    nodes: dict[str, Share]


class QuantizeParams(Strict):
    """Scheme, for all matrix multiplications and convolutions, and for single ones by name or pattern.

    Of several patterns of ``nodes`` that match, the first counts. ``int4-import`` has the checkpoint's own groups in
    place of ``block``.
    """

    scheme: Scheme
    block: Literal[16, 32, 64, 128, 256]
    nodes: dict[str, Scheme]

    @property
    def calibrated(self) -> bool:
        """Whether some scheme wants to know of the activations."""
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
    """What a component's block says of one of its graphs; one that is not to be quantized stays float32."""

    calibrate: CalibrateParams | None
    quantize: QuantizeParams | None
    latency: LatencyParams
    memory: Positive
    gates: Limits


CalibrateOf = Annotated[
    Annotated[CalibrateParams, Tag(ONE)] | Annotated[dict[str, CalibrateParams], Tag(EACH)], Discriminator(by_graph)
]
QuantizeOf = Annotated[
    Annotated[QuantizeParams, Tag(ONE)] | Annotated[dict[str, QuantizeParams], Tag(EACH)], Discriminator(by_graph)
]
LatencyOf = Annotated[
    Annotated[LatencyParams, Tag(ONE)] | Annotated[dict[str, LatencyParams], Tag(EACH)], Discriminator(by_graph)
]


class MeasuredParams(Strict):
    """What every block says: what is measured, and how it is judged.

    Of a component with several graphs, ``latency`` and ``memory`` are tables by graph.

    Attributes:
        cases: the golden cases: of each, the length of every row of the batch.
        memory: the length that ``validate memory`` runs.
    """

    cases: Annotated[list[Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)]
    latency: LatencyOf
    memory: LengthOf
    gates: GateParams

    def of(self, graph: str) -> GraphParams:
        """Return what the block says of one graph.

        Raises:
            UserError: it does not say what is measured of that.
        """
        picked: dict[str, Any] = {}
        for name in ("calibrate", "quantize", "latency", "memory"):
            value = getattr(self, name, None)
            picked[name] = value.get(graph) if isinstance(value, dict) else value
            if picked[name] is None and name in ("latency", "memory"):
                raise UserError(f"params.yaml: {name} says nothing of {graph}; add it")
        return GraphParams(**picked, gates=self.gates.of(graph))


class ComponentParams(MeasuredParams):
    """One component's block; without ``quantize``, it stays float32; without ``calibrate``, nothing is smoothed.

    Of a component with several graphs, ``calibrate`` and ``quantize`` are tables by graph too; one that ``quantize``
    does not name stays float32.
    """

    inputs: InputParams
    export: ExportParams | None
    calibrate: CalibrateOf | None
    quantize: QuantizeOf | None

    @model_validator(mode="after")
    def _quantized_is_judged(self) -> ComponentParams:
        needed_of = {name: how.calibrated for name, how in _blocks(self.quantize).items()}
        given = set(_blocks(self.calibrate))
        if not {name for name, needs in needed_of.items() if needs} <= given <= set(needed_of):
            raise ValueError(
                "calibrate and quantize: give both, or neither, of the same graphs; schemes int8-block, int4-block and "
                "int4-import can do without calibrate"
            )
        needed = ("quantized_share", "latency_share")
        missing = [name for name in needed if getattr(self.gates, name) is None]
        if not self.gates.judges_accuracy:
            missing.insert(0, "below_bfloat16_median_db, quantized_sqnr_db or quantized_top1")
        if self.quantize is not None and missing:
            raise ValueError(f"gates.{missing[0]} must be given: this component is quantized")
        return self


class ComposedParams(MeasuredParams):
    """The block of a component that is composed of others: how its parts are fed and quantized, theirs say.

    Attributes:
        variant: which of token2wav's ways to solve the ODE it has inside.
    """

    variant: Annotated[str, Field(min_length=1)]


def _blocks(value: Any) -> dict[str, Any]:
    """Return what is said of each graph; of a component's only one, or of all alike, under no name."""
    return value if isinstance(value, dict) else {} if value is None else {"": value}
