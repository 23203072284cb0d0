"""Disk and memory that a build takes, estimated from the tensors that it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping

from components import component
from omni.params import Params
from omni.resources import WHOLE_BYTES
from pull.plan import Plan

__all__ = ["disk", "memory"]

_FLOAT_BYTES = 4
_BYTES_A_WEIGHT = {"int8": 1.06, "int4": 0.56}  # with the scales of blocks of 32
_LIBRARIES = 2e9  # memory of the libraries, with PyTorch among them


def disk(plans: Mapping[str, Plan], params: Params) -> dict[str, float]:
    """Return the bytes of everything that a build writes, by the folder that it is handed over in.

    The last entry is what a stage writes for itself and removes: at most one more copy of the largest quantized graph.

    Args:
        plans: Plans by the component's name.
        params: Parameters of the build.
    """
    values = {name: _values(plan) for name, plan in plans.items()}
    quantized = {name: values[name] * _quantized(name, params) for name in plans}
    floating = {
        name: plan.nbytes if _stored_as_is(name, params) else values[name] * _FLOAT_BYTES
        for name, plan in plans.items()
    }
    parts = {whole: [part for part in component(whole).composed_of if part in plans] for whole in params.composed}
    composed = {
        whole: (sum(values[part] * _FLOAT_BYTES for part in found), sum(quantized[part] for part in found))
        for whole, found in parts.items()
    }
    both = {**{name: (floating[name], quantized[name]) for name in plans}, **composed}
    published = {
        name: graphs[1] + graphs[0] * (params.measured(name).publish.float32 or not graphs[1])
        for name, graphs in both.items()
    }
    return {
        "models/source": sum(plan.nbytes for plan in plans.values()),
        "models/onnx": sum(floating.values()),
        "models/compensated": sum(quantized[name] for name in plans if _compensates(name, params)),
        "models/quantized": sum(quantized.values()),
        "models/composed": sum(map(sum, composed.values())),
        "models/published": sum(published.values()),
        "for the time of a stage": max(quantized.values()),
    }


def memory(plans: Mapping[str, Plan]) -> float:
    """Return the bytes of memory that the largest stage takes.

    A session holds a graph twice while it lays its weights out for its kernels. Float32 graphs of more than
    ``WHOLE_BYTES`` are run in segments, or built a tensor at a time.

    Args:
        plans: Plans by the component's name.
    """
    weights = max(_values(plan) for plan in plans.values()) * _FLOAT_BYTES
    return _LIBRARIES + 2 * min(weights, WHOLE_BYTES)


def _values(plan: Plan) -> int:
    return sum(math.prod(spec.shape) for spec in plan.tensors.values())


def _stored_as_is(name: str, params: Params) -> bool:
    """Return whether a component's float32 graphs store weights as the checkpoint does; composed ones never do."""
    settings = params.component(name).export
    return settings is not None and settings.store == "checkpoint"


def _compensates(name: str, params: Params) -> bool:
    return any(quantize.compensation for quantize in params.component(name).quantize.values())


def _quantized(name: str, params: Params) -> float:
    """Return the bytes of a weight in a component's quantized graphs; 0 if it stays float32."""
    schemes = [quantize.scheme for quantize in params.component(name).quantize.values()]
    return max((_BYTES_A_WEIGHT.get(scheme.partition("-")[0], _FLOAT_BYTES) for scheme in schemes), default=0)
