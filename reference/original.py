"""The type that describes a component's implementation in transformers, and helpers that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omni.component import Config

__all__ = ["ATTENTION", "Original", "as_array", "as_tensor", "to_bfloat16"]

ATTENTION = "sdpa"  # one attention implementation for all modules: others round differently in bfloat16
Run = Callable[[Any, Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
Record = Callable[[Any, Mapping[str, np.ndarray], Any], dict[str, np.ndarray]]


def as_tensor(array: np.ndarray, module: Any) -> Any:
    """Return an input as a tensor; floating-point values get the dtype of the module's parameters."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.to(next(module.parameters()).dtype) if tensor.is_floating_point() else tensor


def as_array(output: Any) -> np.ndarray:
    """Return an output as an array; floating-point values get float32, because NumPy has no bfloat16."""
    return (output.float() if output.is_floating_point() else output).numpy()


def to_bfloat16(module: Any) -> None:
    """Cast a module's parameters to bfloat16, one after another, so that it computes in bfloat16.

    Buffers, which transformers computes (rotary embedding, positions), keep their dtype, as when a checkpoint is
    loaded.
    """
    import torch

    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


@dataclass(frozen=True)
class Original:
    """Implementation of a component in transformers, with which its graphs are compared.

    Attributes:
        make: Returns transformers' module, whose parameters are loaded afterwards, or any other object for ``run``.
        tensor_name: Returns the name in the checkpoint of one of the module's parameters.
        run: Returns the outputs of the component's interface, in order, for the module and the inputs by name; inputs
            and outputs are float32, whatever dtype the module computes in. None if ``record`` is given.
        record: Returns all arrays that a golden case holds beside the inputs, for the module, the inputs and the block
            ``export``, where a case holds more than the component's outputs.
        record_largest: Returns what the largest golden case holds besides, for the same arguments; None: nothing.
        lower: Casts the module to bfloat16, for the yardstick; inputs and outputs stay float32.
        record_yardstick: Replaces ``record`` for the yardstick; None uses ``record``.
    """

    make: Callable[[Config], Any]
    tensor_name: Callable[[str], str] = str
    run: Run | None = None
    record: Record | None = None
    record_largest: Record | None = None
    lower: Callable[[Any], None] = to_bfloat16
    record_yardstick: Record | None = None
