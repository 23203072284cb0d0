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
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, IdentityEliminationPass, RemoveUnusedNodesPass
from torch._subclasses.fake_tensor import FakeTensorMode

from omni.quiet import quiet
from qwen_omni_onnx.common.contract import GraphContract

__all__ = ["trace"]

_OPSET = 21
_EXAMPLE = (2, 1009)  # batch and length: neither is 1 or a multiple of a block, which torch would specialize


def trace(build: Callable[[], torch.nn.Module], contract: GraphContract) -> ir.Model:
    """Return the graph of ``build()``; its initializers are parameter names with shapes, and nothing behind them.

    Args:
        build: Builds the module; it is called under fake tensors.
        contract: Names, shapes and symbolic axes of inputs and outputs.
    """
    sizes = contract.sizes(*_EXAMPLE)
    # Symbols also where a module computes nothing from sizes: by the formulas that the exporter writes for the shapes,
    # ONNX Runtime knows which buffers it can use again. Without them the vocoder takes 1.3 GB for 0.3.
    dims = {symbol: torch.export.Dim(symbol) for symbol in ("batch", contract.length, *contract.free)}
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
    _drop_zero_biases(model.graph)
    for clean_up in (IdentityEliminationPass(), CommonSubexpressionEliminationPass(), RemoveUnusedNodesPass()):
        clean_up(model)
    _name_after_modules(model.graph)
    for value, port in zip(model.graph.outputs, contract.outputs, strict=True):
        value.shape = ir.Shape(port.shape)  # the exporter writes formulas where an axis follows from another
    return model


def _drop_zero_biases(graph: ir.Graph) -> None:
    """Let a convolution that has no bias have none.

    The exporter gives it zeros that are expanded at run time, and ONNX Runtime's blocked kernels want constants.
    """
    for node in graph:
        bias = node.inputs[2].producer() if node.op_type == "Conv" and len(node.inputs) > 2 else None
        zero = bias.inputs[0].producer() if bias is not None and bias.op_type == "Expand" else None
        value = zero.inputs[0].producer() if zero is not None and zero.op_type == "CastLike" else None
        if value is not None and value.op_type == "Constant" and value.attributes["value"].as_tensor().numpy() == 0:
            node.resize_inputs(2)


def _name_after_modules(graph: ir.Graph) -> None:
    """Name each node ``<module path>/<operator>``, so that ``params.yaml`` can speak of it."""
    seen: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        inside = [scope for scope in scopes[-2:-1] if scope and not scope.startswith("_empty")]
        name = "/".join([*inside, node.op_type])
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
