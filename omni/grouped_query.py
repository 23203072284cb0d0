"""Which channels around grouped-query attention belong together: calibration and quantization both have to know."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["producer_of", "shared_channels"]

_CONTRIB = "com.microsoft"


def shared_channels(activation: ir.Value, channels: int) -> np.ndarray | None:
    """Say which channels of an activation must have the same factor, for it to fold into attention's values.

    In grouped-query attention several heads of queries read the values of one head, so that a factor on a channel of
    the values comes out on that channel of all of them.

    Args:
        activation: what GroupQueryAttention makes, all heads side by side, or anything else.
        channels: its last axis.

    Returns:
        For each channel, which channel of the values it comes from, [channels]; None where each may have its own.
    """
    heads = _grouped_heads(activation)
    if heads is None:
        return None
    queries, values = heads
    width = channels // queries
    head = np.repeat(np.arange(values), queries // values)
    return (head[:, None] * width + np.arange(width)).ravel()


def _grouped_heads(activation: ir.Value) -> tuple[int, int] | None:
    """Return the numbers of query and value heads, if grouped-query attention over a packed input makes it."""
    node = producer_of(activation, "GroupQueryAttention", _CONTRIB)
    if node is None or activation is not node.outputs[0] or any(value is not None for value in node.inputs[1:3]):
        return None
    return node.attributes.get_int("num_heads"), node.attributes.get_int("kv_num_heads")


def producer_of(value: ir.Value, op_type: str, domain: str = "") -> ir.Node | None:
    """Return the node that makes a value, if it is one of that operator."""
    node = value.producer()
    return node if node is not None and (node.domain, node.op_type) == (domain, op_type) else None
