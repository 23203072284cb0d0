"""Savings of a scheme at each node: bytes from the graph that is built with it, time from ONNX Runtime's profiles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from omni.stored import load_graph
from quantize.sensitivity.assignment import Option
from quantize.sensitivity.bench import Bench, Profile

__all__ = ["kind", "options"]


def options(
    bench: Bench,
    candidates: Sequence[tuple[str, str]],
    noise: Mapping[tuple[str, str], float],
    float_profile: Profile,
    profiles: Mapping[str, Profile],
) -> dict[str, dict[str, Option]]:
    """Return the options of each node by scheme; ``float32`` is always among them.

    Args:
        bench: The graph and its inputs.
        candidates: Every ``(node, scheme)`` that was measured.
        noise: Noise of each candidate.
        float_profile: Profile of the float32 graph.
        profiles: Profiles by scheme, each of the graph in which all the scheme's candidates have it.
    """
    groups = bench.groups()
    shapes = {node: shape for group in groups.values() for node, shape in group.items()}
    work = {node: rows * columns for node, (rows, columns) in shapes.items()}
    whole = sum(work.values())
    float_ms = {node: float_profile.nodes.get(node, float_profile.total * work[node] / whole) for node in shapes}
    result = {node: {"float32": Option(0.0, 4 * work[node], ms)} for node, ms in _by_kind(float_ms, shapes).items()}
    for scheme, profile in profiles.items():
        nodes = [node for node, of in candidates if of == scheme]
        model = bench.build(dict.fromkeys(nodes, scheme))
        saved = _saved(_events(model, bench, groups, nodes, work), float_profile, profile, work)
        for node, ms in _by_kind(saved, shapes).items():
            constants = model.graph.initializers.items()
            size = sum(v.const_value.nbytes for name, v in constants if name.startswith(f"{node}.weight"))
            result[node][scheme] = Option(noise[node, scheme], size, result[node]["float32"].ms - ms)
    return result


def kind(node: str) -> str:
    """Return a node's name without the numbers of layers: ``layers.*.fc2/MatMul``."""
    return re.sub(r"(?<![^.])\d+(?=\.)", "*", node)


def _events(
    model: ir.Model,
    bench: Bench,
    groups: Mapping[str, Mapping[str, object]],
    nodes: Sequence[str],
    work: Mapping[str, int],
) -> dict[str, dict[str, float]]:
    """Return the nodes that each quantized node consists of: their names, and the share of each that is its own.

    Nodes that share an activation share its quantization, by their multiply-accumulates.
    """
    original = {node.name for node in load_graph(bench.graph_file).graph}
    added = [str(node.name) for node in model.graph if node.name not in original]
    events: dict[str, dict[str, float]] = {}
    for activation, group in groups.items():
        readers = [node for node in group if node in nodes]
        shared = [name for name in added if name.startswith(f"{activation}.")]
        for node in readers:
            own = [name for name in added if name.startswith(f"{node}.")]
            share = work[node] / sum(work[reader] for reader in readers)
            events[node] = {node: 1.0} | dict.fromkeys(own, 1.0) | dict.fromkeys(shared, share)
    return events


def _saved(
    events: Mapping[str, Mapping[str, float]], before: Profile, after: Profile, work: Mapping[str, int]
) -> dict[str, float]:
    """Return the ms that each node's quantization saves.

    Nodes whose names did not survive the optimizer share the rest of what the whole graph saves, by their work.
    """
    known = {
        node: before.nodes[node] - sum(share * after.nodes.get(name, 0.0) for name, share in parts.items())
        for node, parts in events.items()
        if node in before.nodes and node in after.nodes
    }
    lost = [node for node in events if node not in known]
    rest, lost_work = before.total - after.total - sum(known.values()), sum(work[node] for node in lost)
    return known | {node: rest * work[node] / lost_work for node in lost}


def _by_kind(ms: Mapping[str, float], shapes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Give nodes of one kind and shape their mean: they do the same work, and a single timing is noisy."""
    same: dict[tuple[str, tuple[int, int]], list[float]] = {}
    for node, value in ms.items():
        same.setdefault((kind(node), shapes[node]), []).append(value)
    return {node: float(np.mean(same[kind(node), shapes[node]])) for node in ms}
