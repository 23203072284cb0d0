"""What each component's file in this room tells the steps that all components share."""

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

__all__ = ["ATTENTION", "Constructed", "Exporter", "Traced", "call", "given", "taken", "to_bfloat16"]

ATTENTION = "sdpa"  # of transformers' own modules: one for all, as another rounds differently in bfloat16

Derived = Mapping[str, Callable[[], np.ndarray]]


def call(module: Any, fed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Run a module that takes and returns what the graph does."""
    import torch

    with torch.inference_mode():
        result = module(**{name: given(array, module) for name, array in fed.items()})
    return tuple(taken(output) for output in (result if isinstance(result, tuple) else (result,)))


def given(array: np.ndarray, module: Any) -> Any:
    """Return an input as a tensor, one of float32 in the dtype that the module's parameters have."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.to(next(module.parameters()).dtype) if tensor.is_floating_point() else tensor


def taken(output: Any) -> np.ndarray:
    """Return an output as an array, one of any floating dtype in float32: NumPy has no bfloat16."""
    return (output.float() if output.is_floating_point() else output).numpy()


def to_bfloat16(module: Any) -> None:
    """Round a module's parameters to bfloat16, one after another; it then computes in that.

    Buffers are what transformers computes itself (rotary embedding, positions): they stay as they are, as when a
    checkpoint is loaded.
    """
    import torch

    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


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
    """The PyTorch side of a component.

    Attributes:
        graphs: by file stem, or by a pattern that it fits where it depends on the checkpoint.
        tensor_name: name in the checkpoint of a parameter of the original.
        original: makes what the graphs are compared with: transformers' own module, its parameters still to be
            loaded, or anything that ``run`` can run.
        run: gives the outputs of the component's interface, in order, for its inputs by name, by means of ``original``;
            inputs and outputs are float32, whatever dtype ``original`` computes in.
        record: where a golden case holds more than these, instead: gives all that it holds beside the inputs, from
            ``original``, the inputs, and the ``export`` block.
        lower: lets ``original`` compute in bfloat16, for the yardstick; inputs and outputs stay float32.
        record_yardstick: what is then recorded instead of all that ``record`` gives.
        files: small files that travel with the graphs, by name, from the configuration and the ``export`` block.
    """

    graphs: Mapping[str, Traced | Constructed]
    original: Callable[[Config], Any]
    tensor_name: Callable[[str], str] = str
    run: Callable[[Any, Mapping[str, np.ndarray]], tuple[np.ndarray, ...]] = call
    record: Callable[[Any, Mapping[str, np.ndarray], Any], dict[str, np.ndarray]] | None = None
    lower: Callable[[Any], None] = to_bfloat16
    record_yardstick: Callable[[Any, Mapping[str, np.ndarray], Any], dict[str, np.ndarray]] | None = None
    files: Callable[[Config, Any], Mapping[str, Mapping[str, Any]]] = lambda config, settings: {}

    def graph(self, stem: str) -> Traced | Constructed:
        """Return one of ``graphs`` by its file stem."""
        return next(graph for pattern, graph in self.graphs.items() if fnmatchcase(stem, pattern))
