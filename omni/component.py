"""The type that describes a component, the names of all components, and the paths of their artifacts.

Each component has one file in ``components`` (its description), one in ``export`` (its graphs), one in ``reference``
(its PyTorch module) and one block in ``params.yaml``. Descriptions import neither PyTorch nor ONNX Runtime; each is a
file of its own so that DVC sees which one changed. ``components.component`` returns them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omni.checkpoint import TensorSpec
from qwen_omni_onnx.common.configuration import table_at
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, GENERATION, TOKENIZER

__all__ = [
    "COMPOSED_OF",
    "NAMES",
    "WITHOUT_SPEECH",
    "Component",
    "Config",
    "Outliers",
    "artifact_path",
    "checkpoint_dtype",
    "require_built",
    "require_speech",
    "sizes",
]

Config = Mapping[str, Any]

NAMES = ("frontend", "encoder", "projection", "thinker", "talker", "token2wav", "audio_core")
COMPOSED_OF = {"audio_core": ("frontend", "encoder", "projection", "token2wav")}  # components whose graphs are composed

WITHOUT_SPEECH = (
    "set components: [frontend, encoder, thinker] and composed: [] in params.yaml, or take a checkpoint that speaks"
)


@dataclass(frozen=True)
class Outliers:
    """Outliers of a synthetic tensor, as trained ones have them: ``rows`` rows of its first axis are scaled up.

    Attributes:
        rows: Number of outlier rows.
        low: Smallest factor by which one is scaled.
        high: Largest factor by which one is scaled.
    """

    rows: int
    low: float
    high: float


@dataclass(frozen=True)
class Component:
    """Description of a component: a part of the model that becomes one ONNX graph, or several that run together.

    Attributes:
        name: Name of the component in ``params.yaml`` and in folder names.
        summary: Summary for model cards.
        caveat: Warning for model cards; may be empty.
        tensors: Returns the tensors that the component needs from a checkpoint, for its configuration.
        contracts: Returns the interface of each graph by file stem, for a configuration.
        composed_of: Components whose graphs are composed into this one; empty if it has tensors of its own.
        companions: Small files of the checkpoint that the component needs beside ``config.json``.
        whole: Returns the interface of all graphs together, or of the loop around the only graph, as the run-time
            offers it; None where the run-time adds nothing to the only graph.
        runtime: Package of the run-time that runs the graphs, for the model card; ``qwen_omni_onnx.runtimes`` holds
            what the stages call.
        example: Python example that uses the run-time in the published folder, for the model card.
        constructed: Whether the graphs are constructed node by node rather than traced.
        matrices: Returns the tensors that are stacked into a MatMul's matrix, for the node's name; None where the
            graphs cannot take 4-bit matrices from a quantized checkpoint.
        voices: Whether the component needs the checkpoint's file of speakers.
        text: Whether the component needs the checkpoint's tokenizer, chat template and generation defaults.
        depth: Path of keys to the number of layers in ``config.json``; empty if the component has no layers.
        fewer_layers: Adapts, in place, other settings of ``config.json`` to a smaller number of layers.
        outliers: Outliers of synthetic weights, by pattern of tensor names.
        gains: Gains of synthetic weights, by pattern of tensor names: a factor on the bound 1/sqrt(fan-in) of a
            matrix' uniform distribution, so that activations are as large as a trained model's; for a vector, the
            bound itself.
        columns: Factors of the columns of synthetic matrices, by pattern of tensor names: a function of their number.
        original_latency: ``{ms_per_token, ms}`` by file stem, where the original model card gives them.
    """

    name: str
    summary: str
    caveat: str
    tensors: Callable[[Config], dict[str, TensorSpec]]
    contracts: Callable[[Config], dict[str, GraphContract]]
    composed_of: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    whole: Callable[[Config], GraphContract] | None = None
    runtime: str | None = None
    example: str = ""
    constructed: bool = False
    matrices: Callable[[str], tuple[str, ...]] | None = None
    voices: bool = False
    text: bool = False
    depth: tuple[str, ...] = ()
    fewer_layers: Callable[[dict[str, Any]], None] | None = None
    outliers: Mapping[str, Outliers] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Callable[[int], np.ndarray]] = field(default_factory=dict)
    original_latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def compared_with(self) -> str:
        """Where the expected outputs of the golden cases come from, in words."""
        return "the separate graphs" if self.composed_of else "PyTorch"

    @property
    def files(self) -> tuple[str, ...]:
        """Small files that are copied beside ``config.json`` with tensors and graphs, if the checkpoint has them."""
        text = (TOKENIZER, CHAT_TEMPLATE, GENERATION) if self.text else ()
        return (*self.companions, *((VOICES,) if self.voices else ()), *text)

    def graph(self, config: Config) -> tuple[str, GraphContract]:
        """Return the file stem and the interface of the component's only graph."""
        ((stem, contract),) = self.contracts(config).items()
        return stem, contract

    def interface(self, config: Config) -> GraphContract:
        """Return the component's interface: that of its run-time, or of its only graph."""
        return self.whole(config) if self.whole else self.graph(config)[1]


def artifact_path(kind: str, name: str) -> Path:
    """Return the folder of a component's artifact of a kind.

    Composed components have folders under ``models/composed``: they are built last, and the stage ``inputs`` depends
    on all of ``models/onnx``, so that DVC's graph would have a cycle if they were there.
    """
    models = Path("models/composed") if name in COMPOSED_OF else Path("models")
    return models / kind / name


def require_built() -> list[str]:
    """Return the names of all components that are built and quantized, sorted.

    Raises:
        UserError: No component is built.
    """
    built = [name for name in sorted(NAMES) if artifact_path("quantized", name).is_dir()]
    if not built:
        raise UserError("nothing is built under models/; run dvc repro, or make repro")
    return built


def checkpoint_dtype(config: Config) -> str:
    """Return the dtype of the stored weights, which ``config.json`` names, by its name in safetensors.

    Raises:
        UserError: The dtype is not one that weights of this model are stored in.
    """
    stored = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    known = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    if not isinstance(stored, str) or stored not in known:
        raise UserError(f"config.json: torch_dtype {stored!r} is not one of {', '.join(known)}")
    return known[stored]


def require_speech(config: Config) -> None:
    """Refuse the configuration of a checkpoint whose audio output is disabled.

    Raises:
        UserError: Audio output is disabled: weights of a Talker, if there are any, are not meant to be used.
    """
    for key in ("enable_audio_output", "enable_talker"):
        if config.get(key) is False:
            raise UserError(f"config.json: {key} is false: this checkpoint does not speak; {WITHOUT_SPEECH}")


def sizes(config: Config, path: str, keys: tuple[str, ...], otherwise: str) -> tuple[int, ...]:
    """Return positive integers from a section of a configuration.

    Args:
        config: Configuration of the checkpoint.
        path: Names of the nested sections, joined by dots.
        keys: Keys in the innermost section.
        otherwise: Explanation for the message where a key is missing.

    Raises:
        UserError: A value is missing, or is not a positive integer.
    """
    try:
        section = table_at(config, path)
        values = tuple(section[key] for key in keys)
    except (KeyError, TypeError):
        raise UserError(f"config.json: no {path} with {_joined(keys)}; {otherwise}") from None
    if not all(type(value) is int and value > 0 for value in values):
        raise UserError(f"config.json: {path} widths must be positive integers, not {values}")
    return values


def _joined(keys: tuple[str, ...]) -> str:
    return " and ".join([", ".join(keys[:-1]), keys[-1]])
