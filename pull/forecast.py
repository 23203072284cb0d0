"""What a whole build will take, before anything is fetched: bytes of each component, disk and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

from components import component
from omni.params import Params
from pull import speakers
from pull.plan import Plan

__all__ = ["table"]

_FLOAT_BYTES = 4
_BYTES_A_WEIGHT = {"int8": 1.06, "int4": 0.56}  # with the scales of blocks of 32
_LIBRARIES_GB = 2  # of memory, with PyTorch among them


def table(plans: Mapping[str, Plan], params: Params) -> str:
    """Return a table of what would be fetched, and what the build takes.

    Disk is that of everything a build writes: sources, float32 and quantized graphs, and published copies of these.
    Memory is the most that one stage takes: PyTorch and ONNX Runtime each hold a float32 graph, and then its weights
    as its kernels want them.

    Args:
        plans: What each component needs, by its name.
        params: What is built from it.
    """
    rows = [("component", "tensors", "bytes", "files"), *(_row(name, plan) for name, plan in plans.items())]
    specs = {name: spec for plan in plans.values() for name, spec in plan.tensors.items()}
    files = {file for plan in plans.values() for file in plan.shards}
    rows.append(("all", f"{len(specs):,}", f"{sum(spec.nbytes for spec in specs.values()):,}", f"{len(files)} shards"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join([*lines, f"disk: about {_disk(plans, params):.0f} GB for the whole build",
                      f"memory: about {_memory(plans):.0f} GB for its largest stage"])  # fmt: skip


def _row(name: str, plan: Plan) -> tuple[str, str, str, str]:
    beside = [*plan.companions, *([speakers.FILE] if plan.speakers else []), *(["tokenizer.json"] if plan.text else [])]
    shards = [f"{len(plan.shards)} shard{'s' * (len(plan.shards) > 1)}"] if plan.shards else []
    return name, f"{len(plan.tensors):,}", f"{plan.nbytes:,}", ", ".join([*shards, *beside])


def _values(plan: Plan) -> int:
    return sum(math.prod(spec.shape) for spec in plan.tensors.values())


def _disk(plans: Mapping[str, Plan], params: Params) -> float:
    """Return gigabytes."""
    graphs = {name: _values(plan) * (_FLOAT_BYTES + _quantized(name, params)) for name, plan in plans.items()}
    composed = sum(graphs.get(part, 0) for whole in params.composed for part in component(whole).composed_of)
    sources = sum(plan.nbytes for plan in plans.values())
    return (sources + 2 * (sum(graphs.values()) + composed)) / 1e9


def _quantized(name: str, params: Params) -> float:
    """Return bytes of each weight in a component's quantized graphs."""
    schemes = [quantize.scheme for quantize in params.component(name).quantize.values()]
    return max((_BYTES_A_WEIGHT.get(scheme.partition("-")[0], _FLOAT_BYTES) for scheme in schemes), default=0)


def _memory(plans: Mapping[str, Plan]) -> float:
    """Return gigabytes."""
    return _LIBRARIES_GB + 2 * max(_values(plan) for plan in plans.values()) * _FLOAT_BYTES / 1e9
