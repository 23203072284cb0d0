"""What each component's file in this folder tells the steps that all components share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from omni.checkpoint import Checkpoint
from omni.component import Config
from omni.params import QuantizeParams

__all__ = ["Constructed", "Derived", "Exporter", "Traced"]

Derived = Mapping[str, Callable[[], np.ndarray]]


def no_constants(config: Config) -> dict[str, np.ndarray]:
    """Every initializer is a tensor of the checkpoint."""
    return {}


def nothing_derived(checkpoint: Checkpoint, settings: Any) -> Derived:
    """Every initializer is one tensor of the checkpoint, as it is or transposed."""
    return {}


@dataclass(frozen=True)
class Traced:
    """One graph's PyTorch side.

    Attributes:
        build: makes the module that is traced, from the configuration and the ``export`` block of ``params.yaml``;
            called under fake tensors, so values must not matter to it.
        tensor_name: name in the checkpoint of a parameter.
        constants: values of the module's buffers, which the checkpoint does not hold.
        derived: values of parameters that follow from tensors of the checkpoint by more than a transposition: each a
            function that reads what it needs and computes one tensor, called while that is written. It gets the
            checkpoint and the ``export`` block.
    """

    build: Callable[[Config, Any], Any]
    tensor_name: Callable[[str], str] = str
    constants: Callable[[Config], dict[str, np.ndarray]] = no_constants
    derived: Callable[[Checkpoint, Any], Derived] = nothing_derived


@dataclass(frozen=True)
class Constructed:
    """One graph that is put together node by node, where tracing would cost memory or give a worse graph.

    Attributes:
        build: gives the graph of a checkpoint, its weights to be read when it is written: in float32, or quantized as
            a ``quantize`` block says.
        beside: writes what lies beside the graph into a folder.
    """

    build: Callable[[Checkpoint, QuantizeParams | None], ir.Model]
    beside: Callable[[Checkpoint, Path], None]


@dataclass(frozen=True)
class Exporter:
    """How a component becomes graphs.

    Attributes:
        graphs: by file stem, or by a pattern that it fits where it depends on the checkpoint.
        files: small files that travel with the graphs, by name, from the configuration and the ``export`` block.
    """

    graphs: Mapping[str, Traced | Constructed]
    files: Callable[[Config, Any], Mapping[str, Mapping[str, Any]]] = lambda config, settings: {}

    def graph(self, stem: str) -> Traced | Constructed:
        """Return one of ``graphs`` by its file stem."""
        return next(graph for pattern, graph in self.graphs.items() if fnmatchcase(stem, pattern))
