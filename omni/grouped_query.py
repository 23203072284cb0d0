"""Channels around grouped-query attention that must share a smoothing factor, for calibration and quantization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TypeVar

import numpy as np
import onnx_ir as ir

__all__ = ["neighbours", "packed_parts", "producer_of", "shared_channels"]

_CONTRIB = "com.microsoft"
T = TypeVar("T")


def shared_channels(activation: ir.Value, channels: int) -> np.ndarray | None:
    """Return which channels of an activation must share a factor, so that it can be folded into attention's values.

    In grouped-query attention several query heads read one head of values, so that a factor on a channel of the values
    scales that channel in the outputs of all of them.

    Args:
        activation: Output of GroupQueryAttention, all heads side by side, or any other activation.
        channels: Size of its last axis.

    Returns:
        The channel of the values that each channel comes from, [channels]; None where every channel may have a factor
        of its own.
    """
    heads = _grouped_heads(activation)
    if heads is None:
        return None
    queries, values = heads
    width = channels // queries
    head = np.repeat(np.arange(values), queries // values)
    return (head[:, None] * width + np.arange(width)).ravel()


def packed_parts(product: ir.Value, outputs: int) -> dict[str, slice]:
    """Return the columns of queries, keys and values in the matrix that makes all three for grouped-query attention.

    Args:
        product: Output of a MatMul; a bias may be added to it.
        outputs: Size of its last axis.

    Returns:
        Columns by name, ``q_proj``, ``k_proj`` and ``v_proj``; nothing for any other MatMul.
    """
    value, uses = product, product.uses()
    if len(uses) == 1 and (uses[0].node.domain, uses[0].node.op_type) == ("", "Add"):
        value = uses[0].node.outputs[0]
    nodes = [use.node for use in value.uses() if use.node.op_type == "GroupQueryAttention" and use.idx == 0]
    heads = _grouped_heads(nodes[0].outputs[0]) if nodes else None
    if heads is None:
        return {}
    queries, values = heads
    width = outputs // (queries + 2 * values)
    ends = np.cumsum([queries * width, values * width, values * width])
    starts = [0, *ends[:-1]]
    names = ("q_proj", "k_proj", "v_proj")
    return {name: slice(int(start), int(end)) for name, start, end in zip(names, starts, ends, strict=True)}


def neighbours(node: str, choices: Mapping[str, T]) -> Iterator[tuple[str, slice, T]]:
    """Yield what of a node's parts stays together: neighbours for which the same was chosen.

    Args:
        node: Name of the node.
        choices: What was chosen for each part, by the part's name, in order.

    Yields:
        Suffix that names the neighbours, such as ``.q_proj.k_proj``, their places among the parts, and the choice.
    """
    start = 0
    for choice, members in groupby(choices, choices.__getitem__):
        parts = list(members)
        yield "".join(part.removeprefix(node) for part in parts), slice(start, start + len(parts)), choice
        start += len(parts)


def _grouped_heads(activation: ir.Value) -> tuple[int, int] | None:
    """Return the numbers of query and value heads of the grouped-query attention, over packed QKV, behind a value."""
    node = producer_of(activation, "GroupQueryAttention", _CONTRIB)
    if node is None or activation is not node.outputs[0] or any(value is not None for value in node.inputs[1:3]):
        return None
    return node.attributes.get_int("num_heads"), node.attributes.get_int("kv_num_heads")


def producer_of(value: ir.Value, op_type: str, domain: str = "") -> ir.Node | None:
    """Return the node that produces a value, if it has that operator type; None otherwise."""
    node = value.producer()
    return node if node is not None and (node.domain, node.op_type) == (domain, op_type) else None
