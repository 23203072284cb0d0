"""``params.yaml`` as typed, validated models: every knob of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from omni.blocks import (
    CalibrateParams,
    ComponentParams,
    ComposedParams,
    ExportParams,
    GraphParams,
    LatencyParams,
    MeasuredParams,
    QuantizeParams,
    Scheme,
)
from omni.component import component, names
from omni.forms import Positive, Repository, Revision, Strict
from omni.limits import GateParams, Limits
from omni.sources import InputParams
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "CalibrateParams",
    "ComponentParams",
    "ComposedParams",
    "ExportParams",
    "GateParams",
    "GraphParams",
    "InputParams",
    "LatencyParams",
    "Limits",
    "MeasuredParams",
    "ModelParams",
    "Params",
    "QuantizeParams",
    "Scheme",
    "load",
]


class ModelParams(Strict):
    """Where the checkpoint comes from.

    Attributes:
        source: ``synthetic``, ``hub``, or a folder.
        repository: On the hub.
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
        """The folder that ``source`` names; None if the checkpoint is made up, or on the hub."""
        return None if self.source in ("synthetic", "hub") else Path(self.source)


class SessionParams(Strict):
    """How every measurement runs.

    Attributes:
        threads: Of every session; 0 lets ONNX Runtime choose.
        patience_seconds: How long one component's latency may be measured again beside busy processes.
    """

    threads: Annotated[int, Field(ge=0, le=1024)]
    patience_seconds: Annotated[float, Field(ge=0)]


class Params(Strict):
    """The whole file.

    Attributes:
        components: that are built, each after what feeds it.
        composed: components that are then composed of those.
        blocks: of the former, by name.
        composed_blocks: of the latter.
    """

    components: Annotated[list[str], Field(min_length=1)]
    composed: list[str]
    model: ModelParams
    sessions: SessionParams
    blocks: dict[str, ComponentParams]
    composed_blocks: dict[str, ComposedParams]

    def component(self, name: str) -> ComponentParams:
        """Return the block of a component that has weights of its own.

        Raises:
            UserError: there is none.
        """
        return _block(self.blocks, name)

    def whole(self, name: str) -> ComposedParams:
        """Return the block of a component that is composed of others.

        Raises:
            UserError: there is none.
        """
        return _block(self.composed_blocks, name)

    def measured(self, name: str) -> MeasuredParams:
        """Return the block of any component.

        Raises:
            UserError: there is none.
        """
        return _block({**self.blocks, **self.composed_blocks}, name)


_Block = TypeVar("_Block")


def _block(blocks: Mapping[str, _Block], name: str) -> _Block:
    if name not in blocks:
        raise UserError(f"params.yaml: no block for the component {name}; add one named {name}")
    return blocks[name]


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and validate the parameters.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown or missing, a value is of the wrong type or
            impossible. One line names the key, the value and what is allowed.
    """
    try:
        table = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run from the repository's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: not a table of parameters")
    known = names()
    blocks = {key: table.pop(key) for key in list(table) if key in known}
    wholes = {key: blocks.pop(key) for key in list(blocks) if component(key).composed_of}
    try:
        params = Params.model_validate({**table, "blocks": blocks, "composed_blocks": wholes})
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error)}") from None
    _require_in_order(path, params)
    return params


def _require_in_order(path: Path, params: Params) -> None:
    """Refuse names of no component, and components without what they are made from.

    Raises:
        UserError: one is such.
    """
    composed = {name: component(name).composed_of for name in names() if component(name).composed_of}
    single = [name for name in names() if name not in composed]
    for index, name in enumerate(params.components):
        if name not in single:
            raise UserError(f"{path}: components.{index}: {name!r} is not one of {', '.join(single)}")
        source = params.component(name).inputs.source
        if source in single and source not in params.components[:index]:
            raise UserError(f"{path}: components.{index}: {name} is fed by {source}: {source} must stand before it")
    for index, name in enumerate(params.composed):
        if name not in composed:
            raise UserError(f"{path}: composed.{index}: {name!r} is not one of {', '.join(composed)}")
        params.whole(name)
        missing = [part for part in composed[name] if part not in params.components]
        if missing:
            raise UserError(
                f"{path}: composed.{index}: {name} is composed of {', '.join(composed[name])}: add {missing[0]} to "
                f"components, or leave {name} out"
            )


def _sentence(error: ValidationError) -> str:
    """Turn pydantic's first complaint into ``key: value: what is allowed``."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if place[0] in ("blocks", "composed_blocks"):
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
