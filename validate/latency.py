"""How fast is the quantized graph beside the float32 one? Interleaved runs in one process, on this machine.

Only ratios are judged: absolute times are the machine's. Both graphs run in every round, in alternating order, so that
what the machine does meanwhile meets both; the interval comes from resampling whole rounds. A component that stays
float32 is timed alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from omni.params import LatencyParams
from omni.resources import machine, others_load, progress
from omni.session import OPTIMIZATIONS, open_session
from validate.subject import FLOAT, QUANTIZED, Subject

__all__ = ["measure", "speedup_interval", "sweep"]

_WARM_UP = 3
_RESAMPLES = 2000


def measure(subject: Subject, params: LatencyParams, threads: int, provider: str) -> dict[str, Any]:
    """Return by length each graph's median time and, of the quantized one, the speed-up with its 95 % interval.

    And a linear fit for each graph.
    """
    sessions = {
        kind: open_session(path, threads=threads, provider=provider, take_turns=True)
        for kind, path in subject.graphs.items()
    }
    lengths = []
    with others_load() as load, progress("latency", len(params.lengths)) as advance:
        for length in params.lengths:
            times = _interleaved(sessions, subject.feed(length), params.rounds, params.seconds)
            entry: dict[str, float] = {"length": length, "rounds": len(times[FLOAT])}
            entry |= {f"{kind}_ms": float(np.median(values) * 1e3) for kind, values in times.items()}
            if QUANTIZED in times:
                speedup, low, high = speedup_interval(times[FLOAT], times[QUANTIZED])
                entry |= {"speedup": speedup, "speedup_low": low, "speedup_high": high}
            lengths.append(entry)
            advance(1)
        busy = load()
    return {
        "axis": subject.contract.length,
        "lengths": lengths,
        "cores_busy_with_other_processes": round(busy, 2),
        "fit": {kind: _fit(lengths, f"{kind}_ms") for kind in subject.graphs},
        "original_note": subject.component.original_latency,
        "threads": threads,
        "provider": provider,
        "machine": machine(),
    }


def sweep(subject: Subject, params: LatencyParams) -> dict[str, Any]:
    """Try every optimization level, thread count and provider here; return all medians and the best for each graph."""
    length = sorted(params.lengths)[len(params.lengths) // 2]
    fed = subject.feed(length)
    cores = int(machine()["cores"])
    providers = [name for name in ort.get_available_providers() if name != "AzureExecutionProvider"]  # remote calls
    combinations = [
        {"optimization": level, "threads": threads, "provider": provider}
        for provider in providers
        for threads in sorted({0, 1, max(1, cores // 2), cores})  # 0: ONNX Runtime's choice
        for level in OPTIMIZATIONS
    ]
    result: dict[str, Any] = {"axis": subject.contract.length, "length": length, "machine": machine(), "graphs": {}}
    for kind, path in subject.graphs.items():
        sessions = {
            str(number): open_session(
                path,
                threads=int(c["threads"]),
                optimization=str(c["optimization"]),
                provider=str(c["provider"]),
                take_turns=True,
            )
            for number, c in enumerate(combinations)
        }
        times = _interleaved(sessions, fed, params.rounds, params.seconds)
        tried = [
            {**combination, "ms": float(np.median(times[str(number)]) * 1e3)}
            for number, combination in enumerate(combinations)
        ]
        result["graphs"][kind] = {"best": min(tried, key=lambda entry: entry["ms"]), "tried": tried}
    return result


def speedup_interval(baseline: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Return the median over rounds of baseline / faster, and its 95 % bootstrap interval.

    The two times of a round were taken one right after the other, so that whatever slowed the machine down for a
    while slowed both, and their ratio says the least about it.
    """
    ratios = np.array(baseline) / np.array(faster)
    random = np.random.default_rng(0)
    resampled = np.median(ratios[random.integers(0, len(ratios), (_RESAMPLES, len(ratios)))], axis=-1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def _interleaved(
    sessions: dict[str, ort.InferenceSession], fed: Mapping[str, np.ndarray], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Time every session once a round, for ``rounds`` rounds and at least ``seconds``; return seconds a run."""
    for session in sessions.values():
        for _ in range(_WARM_UP):
            session.run(None, fed)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    order, began = list(sessions), time.perf_counter()
    while len(times[order[0]]) < rounds or time.perf_counter() - began < seconds:
        order.reverse()
        for name in order:
            start = time.perf_counter()
            sessions[name].run(None, fed)
            times[name].append(time.perf_counter() - start)
    return times


def _fit(lengths: list[dict[str, float]], key: str) -> dict[str, float]:
    slope, start = np.polyfit([entry["length"] for entry in lengths], [entry[key] for entry in lengths], 1)
    return {"ms_each": float(slope), "ms": float(start)}
