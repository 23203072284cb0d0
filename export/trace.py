"""Trace a PyTorch module to an onnx_ir graph with no weight in memory.

The module is built and traced under ``FakeTensorMode``: parameters have shapes but no storage. Constant folding that
reads values cannot work there, so the exporter's optimizer stays off; ``export.weights`` folds what touches weights.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from export.quiet import quiet
from omni.contract import GraphContract

__all__ = ["trace"]

_OPSET = 21
_EXAMPLE_SIZES = (2, 5, 7, 11)  # for symbolic axes: all different and none of them 1, which torch would specialize


def trace(build: Callable[[], torch.nn.Module], contract: GraphContract) -> ir.Model:
    """Return the graph of ``build()``; its initializers are parameter names with shapes, and nothing behind them.

    Args:
        build: makes the module; called under fake tensors.
        contract: gives names, shapes and symbolic axes of inputs and outputs.
    """
    symbols = sorted({axis for port in contract.inputs for axis in port.shape if isinstance(axis, str)})
    sizes = dict(zip(symbols, _EXAMPLE_SIZES, strict=False))
    dims = {symbol: torch.export.Dim(symbol) for symbol in symbols}
    with FakeTensorMode(allow_non_fake_inputs=True), quiet():
        example = {
            port.name: torch.empty(
                port.sized(sizes),
                dtype={"FLOAT": torch.float32, "INT64": torch.int64}[port.dtype],
            )
            for port in contract.inputs
        }
        program = torch.onnx.export(
            build().eval(),
            (),
            kwargs=example,
            dynamo=True,
            optimize=False,
            opset_version=_OPSET,
            verbose=False,
            dynamic_shapes={
                port.name: {i: dims[axis] for i, axis in enumerate(port.shape) if isinstance(axis, str)}
                for port in contract.inputs
            },
            output_names=[port.name for port in contract.outputs],
        )
    assert program is not None
    model = program.model
    _name_after_modules(model.graph)
    return model


def _name_after_modules(graph: ir.Graph) -> None:
    """Name each node ``<module path>/<operator>``, so that ``params.yaml`` can speak of it."""
    seen: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        name = "/".join([*scopes[-2:-1], node.op_type])
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
