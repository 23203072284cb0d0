"""Weights of transformers' modules: loaded at once, or layer by layer as a module without memory for them runs."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch

__all__ = ["load_weights", "stream_weights"]

Read = Callable[[str], np.ndarray]  # from the name of a parameter to its values as the checkpoint stores them


def load_weights(module: torch.nn.Module, read: Read) -> None:
    """Give a module its parameters, in float32."""
    weights = {name: _tensor(read(name)).float() for name, _ in module.named_parameters()}
    module.load_state_dict(weights, assign=True)


def stream_weights(module: torch.nn.Module, read: Read) -> None:
    """Let each layer of a module on the device ``meta`` read its own parameters when it runs, and forget them after.

    Any depth then takes the memory of one layer, by transformers' own forward pass. Parameters are cast to the dtype
    that they have on ``meta``.

    Args:
        module: The module, whose layers use no other layer's parameters.
        read: Reads a parameter.
    """
    for prefix, layer in module.named_modules():
        names = {name: f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_parameters(recurse=False)}
        if names:
            _stream_layer(layer, names, read)


def _stream_layer(layer: torch.nn.Module, names: dict[str, str], read: Read) -> None:
    kept = dict(layer._parameters)

    def enter(layer: torch.nn.Module, _: object) -> None:
        kept.update(layer._parameters)  # cast to another dtype since, perhaps
        for name, full_name in names.items():
            values = _tensor(read(full_name)).to(kept[name].dtype)
            layer._parameters[name] = torch.nn.Parameter(values, requires_grad=False)

    def leave(layer: torch.nn.Module, *_: object) -> None:
        layer._parameters.update(kept)

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor; PyTorch takes no bfloat16 from NumPy, and no type that it does not know."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array if array.dtype.kind == "f" else array.astype(np.float32))
