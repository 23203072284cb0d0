"""What each component's file in this room tells the steps that all components share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omni.component import Config

__all__ = ["Exporter", "call"]


def call(module: Any, fed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Run a module that takes and returns what the graph does."""
    import torch

    with torch.inference_mode():
        result = module(**{name: torch.from_numpy(array) for name, array in fed.items()})
    return tuple(output.numpy() for output in (result if isinstance(result, tuple) else (result,)))


def no_constants(config: Config) -> dict[str, np.ndarray]:
    """Every initializer is a tensor of the checkpoint."""
    return {}


@dataclass(frozen=True)
class Exporter:
    """The PyTorch side of a component.

    Attributes:
        build: makes the module that is traced; called under fake tensors, so values must not matter to it.
        tensor_name: name in the checkpoint of a parameter, of the module that is traced and of the original.
        original: makes what the graph is compared with: transformers' own module, its parameters still to be loaded,
            or anything that ``run`` can run.
        run: gives the graph's outputs, in order, for its inputs by name, by means of ``original``.
        constants: values of the traced module's buffers, which the checkpoint does not hold.
    """

    build: Callable[[Config], Any]
    tensor_name: Callable[[str], str]
    original: Callable[[Config], Any]
    run: Callable[[Any, Mapping[str, np.ndarray]], tuple[np.ndarray, ...]] = call
    constants: Callable[[Config], dict[str, np.ndarray]] = no_constants
