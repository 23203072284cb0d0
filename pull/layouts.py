"""The names that a checkpoint's tensors go by: the hub's, and those that tools give them when they save a model again.

Tools differ in what names begin with, and in that alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

__all__ = ["PREFIXES", "renamed", "stored_name"]

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
"""What names on the hub begin with, and what may stand there instead."""


def renamed(wanted: Iterable[str], present: Collection[str]) -> dict[str, str]:
    """Return what names begin with in a checkpoint, where that is not what they begin with on the hub.

    Args:
        wanted: Names on the hub.
        present: Names in the checkpoint.

    Returns:
        For each of ``PREFIXES`` under which another beginning has more of the wanted tensors, that beginning.
    """
    found = {}
    for theirs, others in PREFIXES.items():
        rest = [name.removeprefix(theirs) for name in wanted if name.startswith(theirs)]
        counts = {prefix: sum(prefix + name in present for name in rest) for prefix in (theirs, *others)}
        best = max(counts, key=lambda prefix: counts[prefix])
        if counts[best] > counts[theirs]:
            found[theirs] = best
    return found


def stored_name(tensor: str, changes: Mapping[str, str]) -> str:
    """Return the name that a checkpoint gives a tensor.

    Args:
        tensor: Its name on the hub.
        changes: As :func:`renamed` returns them.
    """
    for theirs, ours in changes.items():
        if tensor.startswith(theirs):
            return ours + tensor.removeprefix(theirs)
    return tensor
