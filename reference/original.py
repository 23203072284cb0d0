"""What each component's file in this folder tells the recording that all components share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omni.component import Config

__all__ = ["ATTENTION", "Original", "as_array", "as_tensor", "to_bfloat16"]

ATTENTION = "sdpa"  # of transformers' own modules: one for all, as another rounds differently in bfloat16
Run = Callable[[Any, Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
Record = Callable[[Any, Mapping[str, np.ndarray], Any], dict[str, np.ndarray]]


def as_tensor(array: np.ndarray, module: Any) -> Any:
    """Return an input as a tensor, one of float32 in the dtype that the module's parameters have."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.to(next(module.parameters()).dtype) if tensor.is_floating_point() else tensor


def as_array(output: Any) -> np.ndarray:
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


@dataclass(frozen=True)
class Original:
    """What a component's graphs are compared with.

    Attributes:
        make: makes transformers' own module, its parameters still to be loaded, or anything that ``run`` can run.
        tensor_name: name in the checkpoint of one of its parameters.
        run: gives the outputs of the component's interface, in order, from what ``make`` made and the inputs by name;
            inputs and outputs are float32, whatever dtype that computes in. None where ``record`` is given.
        record: where a golden case holds more than these outputs: gives all that it holds beside the inputs, from what
            ``make`` made, the inputs, and the ``export`` block.
        lower: lets what ``make`` made compute in bfloat16, for the yardstick; inputs and outputs stay float32.
        record_yardstick: what is then recorded instead of all that ``record`` gives.
    """

    make: Callable[[Config], Any]
    tensor_name: Callable[[str], str] = str
    run: Run | None = None
    record: Record | None = None
    lower: Callable[[Any], None] = to_bfloat16
    record_yardstick: Record | None = None
