"""Reads and validates ``params.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from omni.component import COMPOSED_OF, NAMES
from omni.forms import Strict
from omni.limits import CheckLimits, Limits, SpeechLimits
from omni.quantization import CalibrateParams, NodeCalibration, QuantizeParams, Scheme
from omni.schema import (
    ComponentParams,
    ComposedParams,
    ExportParams,
    GraphParams,
    InputParams,
    LatencyParams,
    MeasuredParams,
    ModelParams,
    SampledParams,
    SessionParams,
)
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "CalibrateParams",
    "CheckLimits",
    "ComponentParams",
    "ComposedParams",
    "ExportParams",
    "GraphParams",
    "InputParams",
    "LatencyParams",
    "Limits",
    "MeasuredParams",
    "ModelParams",
    "NodeCalibration",
    "Params",
    "QuantizeParams",
    "SampledParams",
    "Scheme",
    "load",
]


class Params(Strict):
    """The content of ``params.yaml``.

    Attributes:
        components: Components that are built, in this order: a component follows the one whose outputs it is fed.
        composed: Components that are composed of those.
        model: Source of the checkpoint.
        sessions: Settings of every measurement's sessions.
        speech: Limits of what is judged by ear, by ``python -m validate speech``.
        blocks: Blocks of the components that have tensors of their own, by name.
        composed_blocks: Blocks of the composed components, by name.
    """

    components: Annotated[list[str], Field(min_length=1)]
    composed: list[str]
    model: ModelParams
    sessions: SessionParams
    speech: SpeechLimits
    blocks: dict[str, ComponentParams]
    composed_blocks: dict[str, ComposedParams]

    def component(self, name: str) -> ComponentParams:
        """Return the block of a component that has tensors of its own.

        Raises:
            UserError: The component has no such block.
        """
        return _block(self.blocks, name)

    def whole(self, name: str) -> ComposedParams:
        """Return the block of a component that is composed of others.

        Raises:
            UserError: The component has no such block.
        """
        return _block(self.composed_blocks, name)

    def measured(self, name: str) -> MeasuredParams:
        """Return the block of any component.

        Raises:
            UserError: The component has no block.
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
        UserError: The file is missing or not YAML; a key is unknown or missing; a value has the wrong type or is out
            of range. The message names the key, the value and what is allowed in one line.
    """
    try:
        table = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run from the repository's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: not a table of parameters")
    blocks = {key: table.pop(key) for key in list(table) if key in NAMES}
    wholes = {key: blocks.pop(key) for key in list(blocks) if key in COMPOSED_OF}
    try:
        params = Params.model_validate({**table, "blocks": blocks, "composed_blocks": wholes})
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error)}") from None
    _require_in_order(path, params)
    return params


def _require_in_order(path: Path, params: Params) -> None:
    """Refuse unknown components, and components that are listed without those that they depend on.

    Raises:
        UserError: A name is unknown, a component precedes the one that feeds it, or a composed one lacks a component.
    """
    own = [name for name in sorted(NAMES) if name not in COMPOSED_OF]
    for index, name in enumerate(params.components):
        if name not in own:
            raise UserError(f"{path}: components.{index}: {name!r} is not one of {', '.join(own)}")
        source = params.component(name).inputs.source
        if source in own and source not in params.components[:index]:
            raise UserError(f"{path}: components.{index}: {name} is fed by {source}: {source} must stand before it")
    for index, name in enumerate(params.composed):
        if name not in COMPOSED_OF:
            raise UserError(f"{path}: composed.{index}: {name!r} is not one of {', '.join(COMPOSED_OF)}")
        params.whole(name)
        missing = [source for source in COMPOSED_OF[name] if source not in params.components]
        if missing:
            raise UserError(
                f"{path}: composed.{index}: {name} is composed of {', '.join(COMPOSED_OF[name])}: add {missing[0]} to "
                f"components, or leave {name} out"
            )


def _sentence(error: ValidationError) -> str:
    """Return pydantic's first error as ``key: value: what is allowed``."""
    first = error.errors()[0]
    path = [str(step) for step in first["loc"]]
    if path[0] in ("blocks", "composed_blocks"):
        path = path[1:]
    key = ".".join(step for step in path if not step.startswith("["))
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it, or mend its spelling"
    if first["type"] == "missing":
        return f"{key}: missing"
    allowed = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):  # keys that do not go together: the message names them
        return f"{key}: {allowed}"
    return f"{key}: {first['input']!r} is not allowed: {allowed[:1].lower()}{allowed[1:]}"
