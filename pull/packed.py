"""Layers that a checkpoint holds packed to 4 bits: which tensors are fetched in place of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from omni.checkpoint import TensorSpec
from omni.component import Config
from omni.packed import packed_format
from qwen_omni_onnx.common.errors import UserError

__all__ = ["INTEGERS", "require_integers", "with_packed"]

INTEGERS = "I32"  # of what holds codes, zero points or groups; scales are floats
_WEIGHT = ".weight"


def with_packed(
    wanted: Mapping[str, TensorSpec], holds: Callable[[str], bool], config: Config
) -> dict[str, TensorSpec]:
    """Return the tensors to fetch: the wanted ones, and in place of a packed layer's weight what it is packed into.

    A layer is packed where the checkpoint has ``X.qweight`` and no ``X.weight``; what the configuration says of
    modules that are not is not looked at. Shapes are those that :func:`omni.packed.packed_format` gives;
    of scales, the dtype may be any of floats.

    Args:
        wanted: The component's tensors, by their names on the hub.
        holds: Whether the checkpoint has a tensor of a name.
        config: The checkpoint's.

    Raises:
        UserError: The packed format is not one that is read, or a layer does not come out even in it.
    """
    found: dict[str, TensorSpec] = {}
    for name, spec in wanted.items():
        module = name.removesuffix(_WEIGHT)
        if holds(name) or module == name or not holds(f"{module}.qweight"):
            found[name] = spec
            continue
        out, into = spec.shape
        for part, shape in packed_format(config).shapes(module, out, into).items():
            if part != "g_idx" or holds(f"{module}.{part}"):
                found[f"{module}.{part}"] = TensorSpec("F16" if part == "scales" else INTEGERS, shape)
    return found


def require_integers(shard: str, tensor: str, dtype: str) -> None:
    """Refuse a packed tensor that does not hold INT32 words.

    Raises:
        UserError: It is of another dtype.
    """
    if dtype != INTEGERS:
        raise UserError(f"{shard}: tensor {tensor} is {dtype}; packed to 4 bits, it must be {INTEGERS}")
