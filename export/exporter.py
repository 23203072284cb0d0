"""The exporter of a component: what the steps that all components share need to know of its PyTorch side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from omni.checkpoint import Checkpoint
from omni.component import Config
from omni.params import QuantizeParams
from omni.patterns import first_match

__all__ = ["Constructed", "Derived", "Exporter", "Traced"]

Derived = Mapping[str, Callable[[], np.ndarray]]


def no_constants(config: Config) -> dict[str, np.ndarray]:
    """Return no constants: every initializer is a tensor of the checkpoint."""
    return {}


def nothing_derived(checkpoint: Checkpoint, settings: Any) -> Derived:
    """Return nothing: every initializer is one tensor of the checkpoint, as it is or transposed."""
    return {}


@dataclass(frozen=True)
class Traced:
    """One graph's PyTorch side.

    Attributes:
        build: Builds the module that is traced, from the configuration and the ``export`` block of ``params.yaml``. It
            is called under fake tensors, so that it must not read values.
        tensor_name: Maps the name of a parameter to the name of its tensor in the checkpoint.
        constants: Returns the values of the module's buffers, which the checkpoint does not hold.
        derived: Returns, from the checkpoint and the ``export`` block, functions for the parameters that follow from
            tensors of the checkpoint by more than a transposition. Each function reads what it needs and computes one
            tensor; it is called while that is written.
    """

    build: Callable[[Config, Any], Any]
    tensor_name: Callable[[str], str] = str
    constants: Callable[[Config], dict[str, np.ndarray]] = no_constants
    derived: Callable[[Checkpoint, Any], Derived] = nothing_derived


@dataclass(frozen=True)
class Constructed:
    """One graph that is put together node by node, where tracing would cost memory or give a worse graph.

    Attributes:
        build: Builds the graph of a checkpoint, its weights to be read when it is written: in float32, or quantized as
            a ``quantize`` block says.
        beside: Writes the files that lie beside the graph into a folder.
    """

    build: Callable[[Checkpoint, QuantizeParams | None], ir.Model]
    beside: Callable[[Checkpoint, Path], None]


@dataclass(frozen=True)
class Exporter:
    """How a component becomes graphs.

    Attributes:
        graphs: The graphs by file stem, or by a pattern of it where the stem depends on the checkpoint.
        files: Returns the contents of small files that travel with the graphs, by name, from the configuration and the
            ``export`` block.
    """

    graphs: Mapping[str, Traced | Constructed]
    files: Callable[[Config, Any], Mapping[str, Mapping[str, Any]]] = lambda config, settings: {}

    def graph(self, stem: str) -> Traced | Constructed:
        """Return one of ``graphs`` by its file stem."""
        graph = first_match(self.graphs, stem)
        assert graph is not None, f"no graph fits {stem}"
        return graph
