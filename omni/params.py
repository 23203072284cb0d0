"""``params.yaml`` as typed, validated models: every knob of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from omni.component import names
from omni.errors import Problem
from omni.forms import EACH, ONE, LengthOf, Positive, Share, Strict, by_graph
from omni.limits import GateParams, Limits
from omni.sources import InputParams

__all__ = [
    "ComponentParams",
    "GateParams",
    "GraphParams",
    "InputParams",
    "LatencyParams",
    "Limits",
    "Params",
    "Scheme",
    "load",
]

Scheme = Literal["int8-token", "int8-tensor", "int8-static", "int8-block", "int4-block", "float32"]


class ModelParams(Strict):
    """Where the checkpoint comes from."""

    source: Annotated[str, Field(min_length=1)]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    widths: Literal["7b", "tiny"]
    layers: Positive | Literal["full"]
    speakers_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None


class SessionParams(Strict):
    """How sessions are opened for every measurement."""

    threads: Annotated[int, Field(ge=0, le=1024)]


class VariantParams(Strict):
    """A way to solve token2wav's ODE: see ``speech.sampler.Variant``."""

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

    Of several patterns of ``nodes`` that match, the first counts.
    """

    scheme: Scheme
    block: Literal[16, 32, 64, 128, 256]
    nodes: dict[str, Scheme]

    @property
    def calibrated(self) -> bool:
        """Whether some scheme wants to know of the activations."""
        return any(
            not scheme.endswith("-block") and scheme != "float32" for scheme in (self.scheme, *self.nodes.values())
        )


class LatencyParams(Strict):
    """What ``validate latency`` runs."""

    lengths: Annotated[list[Positive], Field(min_length=2)]
    rounds: Annotated[int, Field(ge=20)]
    seconds: Annotated[float, Field(gt=0)]


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


class ComponentParams(Strict):
    """One component's block; without ``quantize``, it stays float32; without ``calibrate``, nothing is smoothed.

    Of a component with several graphs, ``calibrate``, ``quantize``, ``latency`` and ``memory`` are tables by graph; one
    that ``quantize`` does not name stays float32.

    Attributes:
        cases: the golden cases: of each, the length of every row of the batch.
        memory: the length that ``validate memory`` runs.
    """

    inputs: InputParams
    cases: Annotated[list[Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)]
    export: ExportParams | None
    calibrate: CalibrateOf | None
    quantize: QuantizeOf | None
    latency: LatencyOf
    memory: LengthOf
    gates: GateParams

    @model_validator(mode="after")
    def _quantized_is_judged(self) -> ComponentParams:
        needed_of = {name: how.calibrated for name, how in _blocks(self.quantize).items()}
        given = set(_blocks(self.calibrate))
        if not {name for name, needs in needed_of.items() if needs} <= given <= set(needed_of):
            raise ValueError(
                "calibrate and quantize: give both, or neither, of the same graphs; schemes int8-block and int4-block "
                "can do without calibrate"
            )
        needed = ("quantized_sqnr_db", "quantized_share", "speedup")
        missing = [name for name in needed if getattr(self.gates, name) is None]
        if self.quantize is not None and missing:
            raise ValueError(f"gates.{missing[0]} must be given: this component is quantized")
        return self

    def of(self, graph: str) -> GraphParams:
        """Return what the block says of one graph.

        Raises:
            Problem: it does not say what is measured of that.
        """
        picked: dict[str, Any] = {}
        for name in ("calibrate", "quantize", "latency", "memory"):
            value = getattr(self, name)
            picked[name] = value.get(graph) if isinstance(value, dict) else value
            if picked[name] is None and name in ("latency", "memory"):
                raise Problem(f"params.yaml: {name} says nothing of {graph}; add it")
        return GraphParams(**picked, gates=self.gates.of(graph))


def _blocks(value: Any) -> dict[str, Any]:
    """Return what is said of each graph; of a component's only one, or of all alike, under no name."""
    return value if isinstance(value, dict) else {} if value is None else {"": value}


class Params(Strict):
    """The whole file."""

    components: Annotated[list[str], Field(min_length=1)]
    model: ModelParams
    sessions: SessionParams
    blocks: dict[str, ComponentParams]

    def component(self, name: str) -> ComponentParams:
        """Return a component's block.

        Raises:
            Problem: there is none.
        """
        if name not in self.blocks:
            raise Problem(f"params.yaml: no block for the component {name}; add one named {name}")
        return self.blocks[name]


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and validate the parameters.

    Raises:
        Problem: the file is missing or not YAML, a key is unknown or missing, a value is of the wrong type or
            impossible. One line names the key, the value and what is allowed.
    """
    try:
        table = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: missing; run from the repository's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(table, dict):
        raise Problem(f"{path}: not a table of parameters")
    known = names()
    blocks = {key: table.pop(key) for key in list(table) if key in known}
    try:
        params = Params.model_validate({**table, "blocks": blocks})
    except ValidationError as error:
        raise Problem(f"{path}: {_sentence(error)}") from None
    for index, name in enumerate(params.components):
        if name not in known:
            raise Problem(f"{path}: components.{index}: {name!r} is not one of {', '.join(known)}")
        source = params.component(name).inputs.source
        if source in known and source not in params.components[:index]:
            raise Problem(f"{path}: components.{index}: {name} is fed by {source}: {source} must stand before it")
    return params


def _sentence(error: ValidationError) -> str:
    """Turn pydantic's first complaint into ``key: value: what is allowed``."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if place[0] == "blocks":
        place = place[1:]
    key = ".".join(part for part in place if not part.startswith("["))
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it, or mend its spelling"
    if first["type"] == "missing":
        return f"{key}: missing"
    allowed = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):  # keys that do not go together: the message names them
        return f"{key}: {allowed}"
    return f"{key}: {first['input']!r} is not allowed: {allowed[:1].lower()}{allowed[1:]}"
