"""Which nodes of a decoder stay at 8 bits: what each one gains, and the nodes that reach a KL divergence or a size.

Gains of single nodes add up nearly independently at the logits, so that nodes are taken in the order of their gain for
a byte. The sum only steers the search. What counts is the graph that is built from the choice, and measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omni.inputs import CALIBRATION, read
from omni.params import GraphParams
from omni.pieces.work import Pool
from omni.reports import REPORTS
from omni.resources import machine
from quantize.sensitivity.assignment import counts, offer
from quantize.sensitivity.logits import Build, Gain, LogitsBench, Measured
from quantize.sensitivity.request import Request
from quantize.sensitivity.savings import kind
from quantize.sensitivity.tables import show_gains
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["fewest", "ranked", "widen", "within"]

_GUIDED = 6  # builds that predictions choose, before the search halves what is left


def widen(
    name: str,
    params: GraphParams,
    graph_file: Path,
    contract: GraphContract,
    build: Build,
    *,
    scheme: str,
    request: Request,
    reads: Sequence[Path],
    pool: Pool,
) -> None:
    """Measure, print and write ``reports/COMPONENT/sensitivity.GRAPH.json``, and ``params.yaml`` if asked to.

    Args:
        name: Name of the component.
        params: Parameters of the graph, which is quantized.
        graph_file: File of the float32 graph.
        contract: Interface of the graph; its first output is logits.
        build: Quantizes the graph by parameters.
        scheme: Scheme that nodes may widen to.
        request: What is asked for: a KL divergence or a size, and whether to write the proposed schemes.
        reads: Folders that quantizing the graph reads.
        pool: Processes that share the work.

    Raises:
        UserError: No node is narrower than ``scheme``, or the target is out of reach.
    """
    assert params.quantize is not None
    with output.temporary_folder(graph_file.parents[2]) as folder:
        clips = read(name, CALIBRATION)
        bench = LogitsBench(graph_file, contract, params.quantize, build, scheme, clips, folder)
        if not bench.nodes:
            raise UserError(f"{name}: every node has the bits of {scheme}; name a wider scheme with --schemes")
        everywhere = bench.whole(bench.nodes)
        _require_reachable(request, bench.base, everywhere, scheme)
        gains = bench.gains(reads, pool)
        found: dict[str, Any] = {
            "component": name,
            "scheme": params.quantize.scheme,
            "wider": scheme,
            "recordings": {port: list(array.shape) for port, array in bench.fed.items() if array.size},
            "tokens": bench.tokens,
            "recipe": vars(bench.base),
            "everywhere": {scheme: vars(everywhere)},
            "nodes": {scheme: _rows(gains, bench.base.kl, by_kind=False)},
            "kinds": {scheme: _rows(gains, bench.base.kl, by_kind=True)},
            "frontier": {"scheme": scheme, "rows": _frontier(gains, bench.base.kl)},
            "machine": machine(),
        }
        show_gains(name, found)
        if request.targets:
            found["proposal"] = _propose(bench, gains, everywhere, request)
    artifact.write_json(REPORTS / name / f"sensitivity.{graph_file.stem}.json", found)
    if request.targets:
        offer((name, "quantize", params.key, "nodes"), found["proposal"], write=request.write)


def ranked(gains: Mapping[str, Gain]) -> list[str]:
    """Return the nodes by what they gain for a byte, the best first."""
    return sorted(gains, key=lambda node: -gains[node].kl / max(1, gains[node].bytes))


def fewest(
    gains: Mapping[str, Gain], base_kl: float, target: float, measure: Callable[[Sequence[str]], float]
) -> list[str]:
    """Return the first nodes of the ranking that were built, measured, and found to reach a KL divergence.

    One node fewer was measured to miss it. Where the sum of gains promised too much or too little, the next guess is
    made for what it was off by.

    Args:
        gains: Gains of single nodes.
        base_kl: KL divergence without any of them, more than ``target``.
        target: KL divergence that all of them together reach.
        measure: Builds a graph with these nodes widened and returns its KL divergence.
    """
    order = ranked(gains)
    predicted = [base_kl]
    for node in order:
        predicted.append(predicted[-1] - gains[node].kl)
    misses, meets, off_by, builds = 0, len(order), 0.0, 0
    while meets - misses > 1:
        guess = next((count for count, kl in enumerate(predicted) if kl + off_by <= target), meets)
        if builds >= _GUIDED:
            guess = (misses + meets) // 2
        count = min(max(guess, misses + 1), meets - 1)
        kl = measure(order[:count])
        builds, off_by = builds + 1, kl - predicted[count]
        if kl <= target:
            meets = count
        else:
            misses = count
    return order[:meets]


def within(gains: Mapping[str, Gain], room: int) -> list[str]:
    """Return the nodes that gain most in all within some bytes, as far as the ranking finds them."""
    chosen = []
    for node in ranked(gains):
        if gains[node].kl > 0 and gains[node].bytes <= room:
            chosen.append(node)
            room -= gains[node].bytes
    return chosen


def _require_reachable(request: Request, base: Measured, everywhere: Measured, scheme: str) -> None:
    """Refuse a target that no choice of nodes meets.

    Raises:
        UserError: It is one; the message says what is within reach.
    """
    if request.target_kl is not None and min(base.kl, everywhere.kl) > request.target_kl:
        raise UserError(
            f"--target-kl {request.target_kl:g}: out of reach; {scheme} at every node gives {everywhere.kl:.3g} at "
            f"{everywhere.bytes / 1e6:.1f} MB"
        )
    if request.target_mb is not None and base.bytes > request.target_mb * 1e6:
        raise UserError(
            f"--target-mb {request.target_mb:g}: out of reach; the graph takes {base.bytes / 1e6:.1f} MB with the "
            "schemes of params.yaml"
        )


def _propose(bench: LogitsBench, gains: Mapping[str, Gain], everywhere: Measured, request: Request) -> dict[str, Any]:
    """Choose, build and verify; say what that costs beside the recipe."""
    built = {(): bench.base, tuple(ranked(gains)): everywhere}

    def measure(nodes: Sequence[str]) -> Measured:
        if tuple(nodes) not in built:
            built[tuple(nodes)] = bench.whole(nodes)
        return built[tuple(nodes)]

    if request.target_mb is not None:
        limit = int(request.target_mb * 1e6)
        nodes = within(gains, limit - bench.base.bytes)
        while measure(nodes).bytes > limit:  # the file pads each weight
            nodes = within({node: gains[node] for node in nodes[:-1]}, limit)
    elif bench.base.kl <= (request.target_kl or 0):
        nodes = []
    else:
        nodes = fewest(gains, bench.base.kl, request.target_kl or 0, lambda some: measure(some).kl)
    chosen, predicted = measure(nodes), bench.base.kl - sum(gains[node].kl for node in nodes)
    more_mb = (chosen.bytes - bench.base.bytes) / 1e6
    return {
        **{option.removeprefix("--").replace("-", "_"): value for option, value in request.targets.items()},
        "predicted_kl": predicted,
        "measured_kl": chosen.kl,
        "bytes": chosen.bytes,
        "more_mb": more_mb,
        "widened": nodes,
        "nodes": bench.widened(nodes),
        "summary": f"KL {bench.base.kl:.4f} becomes {chosen.kl:.4f} (predicted {predicted:.4f}); {more_mb:+.1f} MB, "
        f"{chosen.bytes / 1e6:.1f} in all",
    }


def _rows(gains: Mapping[str, Gain], base_kl: float, *, by_kind: bool) -> list[dict[str, Any]]:
    """Describe each node, or kind of nodes; what gains most for a byte first."""
    members: dict[str, list[str]] = {}
    for node in gains:
        members.setdefault(kind(node) if by_kind else node, []).append(node)
    sums = {
        name: Gain(sum(gains[node].kl for node in nodes), sum(gains[node].bytes for node in nodes))
        for name, nodes in members.items()
    }
    return [
        {
            "name": name,
            "nodes": len(members[name]),
            "kl_gain": sums[name].kl,
            "share_of_kl": sums[name].kl / base_kl if base_kl else 0.0,
            "more_mb": sums[name].bytes / 1e6,
            "kl_gain_per_mb": sums[name].kl / max(1, sums[name].bytes) * 1e6,
        }
        for name in ranked(sums)
    ]


def _frontier(gains: Mapping[str, Gain], base_kl: float) -> list[dict[str, Any]]:
    """Say what the sum of gains predicts where only the k best nodes widen, for some k."""
    order, rows = ranked(gains), []
    for count in counts(len(order)):
        some = [gains[node] for node in order[:count]]
        rows.append(
            {
                "wide_nodes": count,
                "last": order[count - 1] if count else "",
                "predicted_kl": base_kl - sum(gain.kl for gain in some),
                "more_mb": sum(gain.bytes for gain in some) / 1e6,
            }
        )
    return rows
