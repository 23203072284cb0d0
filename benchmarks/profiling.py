"""Where the time of a graph goes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Feeds
from qwen_omni_onnx.common.session import node_events, open_session, profile

__all__ = ["by_operator", "print_shares"]

_RUNS = 3
_TOP = 8  # operator types that are printed


def by_operator(graph: Path, threads: int, fed: Feeds, folder: Path) -> dict[str, float]:
    """Return the share of the time of a graph that each type of operator takes, the largest first.

    Args:
        graph: file.
        threads: of the session.
        fed: its inputs.
        folder: where ONNX Runtime writes its profile.
    """
    session = open_session(graph, threads=threads, profiled_to=folder / "profile")
    for _ in range(_RUNS):
        session.run(None, dict(fed))
    micros: dict[str, float] = {}
    for event in node_events(profile(session)):
        kind = event["args"]["op_name"]
        micros[kind] = micros.get(kind, 0.0) + event["dur"]
    total = sum(micros.values())
    return {kind: micros[kind] / total for kind in sorted(micros, key=lambda kind: -micros[kind])}


def print_shares(of: str, shares: dict[str, float]) -> None:
    named = [f"{kind} {share:.0%}" for kind, share in list(shares.items())[:_TOP]]
    print(f"time of {of}, by operator: {', '.join(named)}")
