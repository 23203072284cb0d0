"""What a component is, which there are, and where their artifacts lie.

Each component has one file in ``components`` (what it is), one in ``export`` (how it becomes a graph), one in
``reference`` (what PyTorch gives) and one block in ``params.yaml``. Descriptions import nothing heavy; they are files
of their own so that DVC sees which one changed. ``components.component`` gives them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
COMPOSED_OF = {"audio_core": ("frontend", "encoder", "projection", "token2wav")}  # graphs of these, put together

WITHOUT_SPEECH = (
    "set components: [frontend, encoder, thinker] and composed: [] in params.yaml, or take a checkpoint that speaks"
)


@dataclass(frozen=True)
class Outliers:
    """Of synthetic weights: rows of a tensor's first axis that stand out by a factor in a range, as in trained ones."""

    rows: int
    low: float
    high: float


@dataclass(frozen=True)
class Component:
    """What becomes an ONNX graph, or several that belong together.

    Attributes:
        name: as in ``params.yaml`` and in folder names.
        summary: one sentence for model cards.
        caveat: what a user must know before relying on it, for model cards; may be empty.
        tensors: the checkpoint's tensors that it needs, with dtype and shape as the configuration says.
        contracts: the interface of its graph, by file stem.
        composed_of: the components whose graphs it is put together from; none if it has tensors of its own.
        companions: small files of the checkpoint that it needs beside ``config.json``.
        whole: the interface of all its graphs together, or of a loop around its only one, as its run-time offers it;
            None where the graph itself is all there is.
        runtime: the package of the run-time that runs them so, for the card; ``qwen_omni_onnx.runtimes`` has what the
            stages call of it.
        example: lines of Python that run it so in its published folder, for the card.
        constructed: whether its graphs are put together node by node, and not traced.
        matrices: the tensors that make up a MatMul's matrix, one below the other, by the node's name; None where what
            is imported from a quantized checkpoint has no place in its graphs.
        voices: whether it needs the speakers that the checkpoint keeps in a file of its own.
        text: whether it needs the checkpoint's tokenizer, chat template and generation defaults.
        depth: where ``config.json`` says how many layers it has: the keys that lead there; none if it has no layers.
        fewer_layers: what else of ``config.json`` changes with that number; changes it in place.
        outliers: of synthetic weights, by pattern of tensor names.
        gains: of synthetic weights, by pattern of tensor names: what multiplies the bound 1/sqrt(fan-in) of their
            distribution, so that activations are of a trained model's size; of a vector, the bound itself.
        original_latency: ``{ms_per_token, ms}`` by file stem, where the note this project starts from gives them.
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
    original_latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def compared_with(self) -> str:
        """What its golden cases come from."""
        return "the separate graphs" if self.composed_of else "PyTorch"

    @property
    def files(self) -> tuple[str, ...]:
        """Small files that travel with its tensors and graphs beside ``config.json``, where the checkpoint has them."""
        text = (TOKENIZER, CHAT_TEMPLATE, GENERATION) if self.text else ()
        return (*self.companions, *((VOICES,) if self.voices else ()), *text)

    def graph(self, config: Config) -> tuple[str, GraphContract]:
        """Return the file stem of its only graph, and the interface."""
        ((stem, contract),) = self.contracts(config).items()
        return stem, contract

    def interface(self, config: Config) -> GraphContract:
        """Return the interface of the component: as its run-time offers it, or of its only graph."""
        return self.whole(config) if self.whole else self.graph(config)[1]


def artifact_path(kind: str, name: str) -> Path:
    """Return where an artifact of a component lies.

    Those of composed ones lie apart. They come after everything else, and the stage ``inputs`` depends on all of
    ``models/onnx``: in there, they would make DVC's graph a circle.
    """
    models = Path("models/composed") if name in COMPOSED_OF else Path("models")
    return models / kind / name


def require_built() -> list[str]:
    """Names of all components that are built and quantized.

    Raises:
        UserError: there is none.
    """
    built = [name for name in sorted(NAMES) if artifact_path("quantized", name).is_dir()]
    if not built:
        raise UserError("nothing is built under models/; run dvc repro, or make repro")
    return built


def checkpoint_dtype(config: Config) -> str:
    """Return the safetensors name of the dtype that ``config.json`` says the weights are stored in.

    Raises:
        UserError: it says one that no checkpoint of this model has.
    """
    stored = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    known = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    if not isinstance(stored, str) or stored not in known:
        raise UserError(f"config.json: torch_dtype {stored!r} is not one of {', '.join(known)}")
    return known[stored]


def require_speech(config: Config) -> None:
    """Refuse the configuration of a checkpoint that was made to write and not to speak.

    Raises:
        UserError: it is one; its weights of what speaks, if there are any, are not meant to be used.
    """
    for key in ("enable_audio_output", "enable_talker"):
        if config.get(key) is False:
            raise UserError(f"config.json: {key} is false: this checkpoint does not speak; {WITHOUT_SPEECH}")


def sizes(config: Config, path: str, keys: tuple[str, ...], otherwise: str) -> tuple[int, ...]:
    """Return positive integers from a section of a configuration.

    Args:
        config: the checkpoint's.
        path: names of nested sections, joined by dots.
        keys: in that section.
        otherwise: what a checkpoint without them is.

    Raises:
        UserError: one is missing, or no positive integer.
    """
    try:
        section = table_at(config, path)
        values = tuple(section[key] for key in keys)
    except (KeyError, TypeError):
        raise UserError(f"config.json: no {path} with {_listed(keys)}; {otherwise}") from None
    if not all(type(value) is int and value > 0 for value in values):
        raise UserError(f"config.json: {path} widths must be positive integers, not {values}")
    return values


def _listed(keys: tuple[str, ...]) -> str:
    return " and ".join([", ".join(keys[:-1]), keys[-1]])
