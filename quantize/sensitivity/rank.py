"""The cost of each node's quantization at the graph's output, what it saves, and the schemes that follow from that.

A node is quantized alone, by :func:`quantize.apply.quantize` and in ONNX Runtime's own kernels, and the output compared
with the float32 graph's on the same recordings. What single nodes do to the output adds up nearly independently, so
that the sum of their noises tells what any choice of nodes will do; ``quantize.sensitivity.assignment`` chooses by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omni.inputs import CALIBRATION, Feeds, feed, read
from omni.params import GraphParams, QuantizeParams, load
from omni.patterns import first_match, require_matches
from omni.pieces.work import Pool
from omni.reports import REPORTS
from omni.resources import machine, others_load, progress
from quantize.apply import Calibration
from quantize.sensitivity.assignment import Options, choose, decibels, frontier, offer, totals
from quantize.sensitivity.bench import Bench, Joint, recordings
from quantize.sensitivity.request import Request
from quantize.sensitivity.savings import kind, options
from quantize.sensitivity.tables import show
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["rank"]


def rank(
    name: str,
    params: GraphParams,
    graph_file: Path,
    contract: GraphContract,
    calibration: Mapping[str, Calibration],
    *,
    feeds: Feeds | None,
    schemes: Sequence[str],
    request: Request,
    pool: Pool,
) -> None:
    """Measure, print and write ``reports/COMPONENT/sensitivity.GRAPH.json``, and ``params.yaml`` if asked to.

    Args:
        name: Name of the component.
        params: Parameters of the graph, which is quantized.
        graph_file: File of the float32 graph.
        contract: Interface of the graph.
        calibration: Calibration by activation.
        feeds: Recorded inputs, for one graph of several.
        schemes: Schemes to try beside the component's own.
        request: What is asked for: the SQNR that the proposed schemes must reach, and whether to write these.
        pool: Processes that share the work.

    Raises:
        UserError: There is nothing to compare.
    """
    assert params.quantize is not None
    bench = _bench(params, graph_file, contract, calibration, feeds or read(name, CALIBRATION))
    nodes = _nodes(bench)
    candidates = _candidates(nodes, params.quantize, schemes)
    with others_load() as load_elsewhere:
        noise = bench.alone(candidates, pool)
        joints = _joints(bench, candidates)
        busy = load_elsewhere()
    float32 = joints.pop("float32")
    assert float32.profile is not None
    profiles = {scheme: joint.profile for scheme, joint in joints.items() if joint.profile is not None}
    table = options(bench, candidates, noise, float32.profile, profiles)
    first = params.quantize.scheme if params.quantize.scheme in joints else next(iter(joints))
    length = max(params.latency.lengths)
    found: dict[str, Any] = {
        "component": name,
        "scheme": params.quantize.scheme,
        "recordings": {port: list(array.shape) for port, array in bench.fed.items()},
        "timed_at": {contract.length: length},
        "float32": {"bytes": float32.bytes, "ms": float32.profile.total},
        "everywhere": {scheme: _everywhere(table, scheme, joint) for scheme, joint in joints.items()},
        "nodes": {scheme: _rows(table, scheme, by_kind=False) for scheme in joints},
        "kinds": {scheme: _rows(table, scheme, by_kind=True) for scheme in joints},
        "frontier": {"scheme": first, "rows": frontier(table, first)},
        "cores_busy_with_other_processes": round(busy, 2),
        "machine": machine(),
    }
    show(name, found, f"{contract.length} {length}")
    if request.target_db is not None:
        found["proposal"] = _propose(bench, table, joints[first], first, params.quantize, request.target_db)
    artifact.write_json(REPORTS / name / f"sensitivity.{graph_file.stem}.json", found)
    if request.target_db is not None:
        offer((name, "quantize", params.key, "nodes"), found["proposal"], write=request.write)


def _bench(
    params: GraphParams,
    graph_file: Path,
    contract: GraphContract,
    calibration: Mapping[str, Calibration],
    clips: Mapping[str, np.ndarray] | Feeds,
) -> Bench:
    assert params.quantize is not None
    longest = max(params.latency.lengths)
    fed: Mapping[str, np.ndarray]
    fed_long: Mapping[str, np.ndarray]
    if isinstance(clips, Feeds):
        fed, fed_long = clips[sorted(clips)[len(clips) // 2]], contract.example(1, longest)
    else:
        fed, fed_long = recordings(contract, clips, longest), feed(contract, list(clips.values()), [longest])
    return Bench(
        graph_file=graph_file,
        output=contract.outputs[0].name,
        params=params.quantize,
        calibration=calibration,
        fed=fed,
        fed_long=fed_long,
        threads=load().sessions.threads,
    )


def _nodes(bench: Bench) -> list[str]:
    nodes = [node for group in bench.groups().values() for node in group]
    if not nodes:
        raise UserError(f"{bench.graph_file}: no MatMul with a constant matrix, nothing to quantize")
    return nodes


def _candidates(nodes: list[str], params: QuantizeParams, schemes: Sequence[str]) -> list[tuple[str, str]]:
    """Return every ``(node, scheme)`` to measure: the component's schemes and those to try, never float32."""
    require_matches("quantize.nodes", params.nodes, nodes)
    tried = {
        node: dict.fromkeys([params.scheme, *schemes, first_match(params.nodes, node) or params.scheme])
        for node in nodes
    }
    candidates = [(node, scheme) for node in nodes for scheme in tried[node] if scheme != "float32"]
    if not candidates:
        raise UserError("--schemes: only float32, nothing to compare it with; name a scheme that quantizes")
    return candidates


def _joints(bench: Bench, candidates: list[tuple[str, str]]) -> dict[str, Joint]:
    """Measure the float32 graph, and for each scheme the one in which all its candidates have it."""
    schemes = ["float32", *dict.fromkeys(scheme for _, scheme in candidates)]
    expected, joints = bench.expected(), {}
    with progress("whole graphs", len(schemes)) as advance:
        for scheme in schemes:
            joints[scheme] = bench.joint({n: s for n, s in candidates if s == scheme}, expected, timed=True)
            advance(1)
    return joints


def _everywhere(table: Options, scheme: str, joint: Joint) -> dict[str, float]:
    assert joint.profile is not None
    chosen = {node: scheme if scheme in of else "float32" for node, of in table.items()}
    return {
        "predicted_db": decibels(totals(table, chosen).noise),
        "measured_db": joint.sqnr_db,
        "bytes": joint.bytes,
        "ms": joint.profile.total,
    }


def _rows(table: Options, scheme: str, *, by_kind: bool) -> list[dict[str, Any]]:
    """Describe each node, or kind of nodes, under one scheme; the noisiest first."""
    members: dict[str, list[str]] = {}
    for node, of in table.items():
        if scheme in of:
            members.setdefault(kind(node) if by_kind else node, []).append(node)
    whole = sum(table[node][scheme].noise for nodes in members.values() for node in nodes)
    rows = []
    for name, nodes in members.items():
        noise = sum(table[node][scheme].noise for node in nodes)
        ms = sum(table[node]["float32"].ms - table[node][scheme].ms for node in nodes)
        size = sum(table[node]["float32"].bytes - table[node][scheme].bytes for node in nodes)
        gained = decibels(whole - noise) - decibels(whole) if len(members) > 1 and noise < whole else None
        rows.append(
            {
                "name": name,
                "nodes": len(nodes),
                "sqnr_db": decibels(noise),
                "share_of_noise": noise / whole if whole else 0.0,
                "saves_mb": size / 1e6,
                "saves_ms": ms,
                "float32_buys_db": gained,
                "float32_buys_db_per_ms": gained / ms if gained is not None and ms > 0 else None,
            }
        )
    return sorted(rows, key=lambda row: -row["share_of_noise"])


def _propose(
    bench: Bench, table: Options, everywhere: Joint, first: str, params: QuantizeParams, target_db: float
) -> dict[str, Any]:
    """Choose, build and verify; say what that costs beside ``first`` everywhere."""
    expected, sizes = bench.expected(), {}

    def measure(schemes: Mapping[str, str]) -> float:
        joint = bench.joint(schemes, expected)
        sizes[tuple(schemes.items())] = joint.bytes
        return joint.sqnr_db

    choice = choose(table, target_db, params.scheme, measure)
    base = totals(table, {node: first if first in of else "float32" for node, of in table.items()})
    more_mb = (sizes[tuple(choice.schemes.items())] - everywhere.bytes) / 1e6
    more_ms = totals(table, choice.schemes).ms - base.ms
    return {
        "target_db": target_db,
        "predicted_db": choice.predicted_db,
        "measured_db": choice.measured_db,
        "more_mb": more_mb,
        "more_ms": more_ms,
        "nodes": {node: scheme for node, scheme in choice.schemes.items() if scheme != params.scheme},
        "summary": f"predicted {choice.predicted_db:.1f} dB, measured {choice.measured_db:.1f} dB; "
        f"{more_mb:+.1f} MB and {more_ms:+.1f} ms beside {first} everywhere",
    }
