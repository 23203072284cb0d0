"""How checkpoints lay out the hub's tensors: under names with other prefixes, and packed to 4 bits.

Tools that save a model again give its tensors names that differ in their prefixes alone. Tools that quantize it replace
the weights of layers by tensors of codes, scales and zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from omni.checkpoint import TensorSpec
from omni.component import Config
from omni.packed import packed_format

__all__ = ["INTEGERS", "PREFIXES", "renamed", "stored_name", "with_packed"]

INTEGERS = "I32"  # dtype of codes, zero points and groups; scales are floats
_WEIGHT = ".weight"

PREFIXES: Mapping[str, tuple[str, ...]] = {
    # vLLM's; transformers 5's modules; then those of a Thinker that was saved alone, by each.
    "thinker.model.": (
        "thinker.language_model.model.",
        "thinker.model.language_model.",
        "model.",
        "language_model.model.",
        "model.language_model.",
    ),
    "thinker.lm_head.": ("thinker.language_model.lm_head.", "lm_head.", "language_model.lm_head."),
    "thinker.audio_tower.": ("thinker.model.audio_tower.", "audio_tower.", "model.audio_tower."),
}
"""Prefixes of names on the hub, and those that other tools write instead."""


def renamed(wanted: Iterable[str], present: Collection[str]) -> dict[str, str]:
    """Return the prefixes of names in a checkpoint that differ from those on the hub.

    Args:
        wanted: Names on the hub.
        present: Names in the checkpoint.

    Returns:
        For each of ``PREFIXES``, the prefix under which the checkpoint has most of the wanted tensors, if that is
        another.
    """
    found = {}
    for hub, others in PREFIXES.items():
        rest = [name.removeprefix(hub) for name in wanted if name.startswith(hub)]
        counts = {prefix: sum(prefix + name in present for name in rest) for prefix in (hub, *others)}
        best = max(counts, key=lambda prefix: counts[prefix])
        if counts[best] > counts[hub]:
            found[hub] = best
    return found


def stored_name(tensor: str, changes: Mapping[str, str]) -> str:
    """Return the name of a tensor in a checkpoint.

    Args:
        tensor: Its name on the hub.
        changes: Prefixes that :func:`renamed` returned.
    """
    for hub, stored in changes.items():
        if tensor.startswith(hub):
            return stored + tensor.removeprefix(hub)
    return tensor


def with_packed(
    wanted: Mapping[str, TensorSpec], holds: Callable[[str], bool], config: Config
) -> dict[str, TensorSpec]:
    """Return the tensors to fetch: the wanted ones, with the packed tensors of a layer in place of its weight.

    A layer is packed where the checkpoint has ``X.qweight`` and no ``X.weight``, whatever the configuration says of
    modules that are not. Shapes are those that :func:`omni.packed.packed_format` gives; scales may be of any dtype of
    floats.

    Args:
        wanted: The component's tensors, by their names on the hub.
        holds: Returns whether the checkpoint has a tensor of a name.
        config: Configuration of the checkpoint.

    Raises:
        UserError: The packed format is not one that is read, or a layer's widths are not multiples of its groups.
    """
    found: dict[str, TensorSpec] = {}
    for name, spec in wanted.items():
        module = name.removesuffix(_WEIGHT)
        if holds(name) or module == name or not holds(f"{module}.qweight"):
            found[name] = spec
            continue
        out, into = spec.shape
        for packed, shape in packed_format(config).shapes(module, out, into).items():
            if packed != "g_idx" or holds(f"{module}.{packed}"):
                found[f"{module}.{packed}"] = TensorSpec("F16" if packed == "scales" else INTEGERS, shape)
    return found
