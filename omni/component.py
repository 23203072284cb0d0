"""What a component is, and where its description is found.

Each component has one file in ``components`` (what it is), one in ``export`` (how it becomes a graph) and one block in
``params.yaml``. Descriptions import nothing heavy; they are files of their own so that DVC sees which one changed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import components
from omni.checkpoint import TensorSpec
from omni.contract import GraphContract
from omni.errors import Problem

__all__ = ["Component", "component", "names", "require_built"]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Component:
    """A part of the model that becomes ONNX graphs.

    Attributes:
        name: as in ``params.yaml`` and in folder names.
        summary: one sentence for model cards.
        caveat: what a user must know before relying on it, for model cards; may be empty.
        tensors: the checkpoint's tensors that it needs, with dtype and shape as the configuration says.
        contracts: the interface of each of its graphs, by file stem.
        original_latency: ``{ms_per_token, ms}`` that the note this project starts from gives for it, if it does.
    """

    name: str
    summary: str
    caveat: str
    tensors: Callable[[Config], dict[str, TensorSpec]]
    contracts: Callable[[Config], dict[str, GraphContract]]
    original_latency: Mapping[str, float] | None = None

    @property
    def exporter(self) -> str:
        """The module that knows its PyTorch side."""
        return f"export.{self.name}"


def names() -> list[str]:
    """Names of all components that this version can build."""
    return sorted(module.name for module in pkgutil.iter_modules(components.__path__))


def component(name: str) -> Component:
    """Return the description of a component.

    Raises:
        Problem: there is none of that name.
    """
    if name not in names():
        raise Problem(f"no component {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"components.{name}").COMPONENT


def require_built() -> list[str]:
    """Names of all components that are built and quantized.

    Raises:
        Problem: there is none.
    """
    built = [name for name in names() if (Path("models/int8") / name).is_dir()]
    if not built:
        raise Problem("nothing is built under models/; run dvc repro, or make repro")
    return built
