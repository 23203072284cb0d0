"""Apply calibration's exact changes to an activation: folded into what produces it, or as nodes where that fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from omni.change import Change
from omni.weight import Weight
from quantize.fold import fold, shifts_softmax_alone
from quantize.schemes import Rewriter, bias_of

__all__ = ["Smoothed", "Smoother"]


@dataclass(frozen=True)
class Smoothed:
    """An activation that was changed.

    Attributes:
        activation: Name of the changed value.
        record: What the record of its readers says of it.
    """

    activation: str
    record: Mapping[str, Any]


class Smoother:
    """Changes activations of one graph, and the matrices that read them.

    Args:
        rewriter: Rewriter of the graph.
        weights: Matrices of all MatMuls in the graph, which are changed in place.
    """

    def __init__(self, rewriter: Rewriter, weights: dict[ir.Node, Weight]) -> None:
        self._rewriter, self._weights = rewriter, weights

    def apply(self, activation: ir.Value, readers: list[ir.Node], chosen: list[ir.Node], change: Change) -> Smoothed:
        """Change an activation for the ``chosen`` among its ``readers``.

        What folds into what produces the activation costs nothing, and all its readers read it changed; what does not
        is done by nodes before the chosen ones.
        """
        if not change.changes:
            return Smoothed(str(activation.name), {})
        record: dict[str, Any] = {}
        if taker := fold(activation, readers, change, self._weights):
            self._change_matrices(readers, change)
            record["smoothing"] = f"folded into {taker}"
            if change.run:
                record["rotation"] = f"{change.run} channels, folded"
            return Smoothed(str(activation.name), record)
        inner = change.unrotated()
        taker = fold(activation, readers, inner, self._weights) if inner.changes else None
        changed, first = activation, chosen[0]
        if taker:
            record["smoothing"] = f"folded into {taker}"
        elif inner.changes:
            if change.shift is not None:
                changed = self._rewriter.shift(changed, change.shift, first)
            if change.scales:
                changed = self._rewriter.smooth(changed, change.factors, first)
            record["smoothing"] = "Mul" if change.shift is None else "Sub and Mul" if change.scales else "Sub"
        if change.run:
            changed = self._rewriter.rotate(changed, change.run, len(change.factors), first)
            record["rotation"] = f"{change.run} channels, MatMul"
        for node in chosen:
            node.replace_input_with(0, changed)
        self._change_matrices(chosen, change)
        if taker:
            self._change_matrices([node for node in readers if node not in chosen], inner)
        return Smoothed(str(changed.name), record)

    def _change_matrices(self, nodes: list[ir.Node], change: Change) -> None:
        for node in nodes:
            if change.shift is not None:
                self._shift_bias(node, self._weights[node].product(change.shift))
            self._weights[node].change_rows(change.factors, change.run)

    def _shift_bias(self, node: ir.Node, added: np.ndarray) -> None:
        """Add a vector [out] to a MatMul's output: to its bias, if it has one, or by an Add after it."""
        bias, add = bias_of(node)
        builder = self._rewriter.builder
        if bias is not None:
            shifted = ir.tensor((bias.const_value.numpy() + added).astype(np.float32), name=f"{bias.name}_shifted")
            add.replace_input_with(list(add.inputs).index(bias), builder.initializer(shifted))
        elif not shifts_softmax_alone(node.outputs[0]):
            vector, product = builder.constant(f"{node.name}.shift", added), node.outputs[0]
            uses = list(product.uses())
            result = builder.op("Add", [product, vector], f"{node.name}.with_shift")
            result.shape, result.type = product.shape, product.type
            for use in uses:
                use.node.replace_input_with(use.idx, result)
            if product.is_graph_output():
                product.replace_all_uses_with(result, replace_graph_outputs=True)
