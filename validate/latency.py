"""How fast is the quantized graph beside the float32 one? Interleaved runs in one process, on this machine.

Only ratios are judged: absolute times are the machine's. Both graphs run in every round, in alternating order, so that
what the machine does meanwhile meets both; the interval comes from resampling whole rounds. In the same rounds run the
multiplications alone, float32 and quantized: they say how fast the quantized graph could be here. A component that
stays float32 is timed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike

from omni.params import LatencyParams
from omni.reports import GraphLatency, LengthLatency, LinearFit, SweptGraph
from omni.resources import machine, others_load, progress
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.session import OPTIMIZATIONS, open_session
from validate.bare import Kernel
from validate.ceiling import BareKernels, kernels
from validate.measured import MeasuredGraph
from validate.patience import Attempt, Patience

__all__ = ["compared", "measure", "speedup_interval", "sweep"]

_WARM_UP = 3
_MOST_ROUNDS = 400  # the profiler keeps every node of each: of short runs, hundreds of thousands in a few seconds
_RESAMPLES = 2000


def measure(
    graph: MeasuredGraph,
    params: LatencyParams,
    threads: int,
    provider: str,
    patience: Patience,
    original_note: Mapping[str, float] | None = None,
) -> GraphLatency:
    """Return by length the median time of each kind and, where one is quantized, how it compares.

    A length is measured again, as long as ``patience`` lasts, where other processes kept the processor busy and the
    result is uncertain.

    Args:
        graph: The graph.
        params: The lengths, and how long each is timed.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.
        provider: Execution provider.
        patience: How long to measure again.
        original_note: ``ms_per_token`` and ``ms`` that the original model's card gives for this graph.
    """
    needed = {length: kernels(graph, length) if QUANTIZED in graph.files else {} for length in params.lengths}
    sessions = {
        kind: open_session(path, threads=threads, provider=provider, stop_spinning=True)
        for kind, path in graph.files.items()
    }
    lengths = []
    with others_load() as load, progress("latency", len(params.lengths)) as advance:
        for length in params.lengths:
            runs = {kind: partial(session.run, None, graph.feed(length)) for kind, session in sessions.items()}
            entry = patience.narrowest(partial(_attempt, runs, needed[length], params, threads, provider))
            lengths.append(LengthLatency(length=length, **entry))
            advance(1)
        busy = load()
    return GraphLatency(
        axis=graph.contract.length,
        works_at=params.works_at,
        files={kind: path.name for kind, path in graph.files.items()},
        lengths=lengths,
        cores_busy_with_other_processes=round(busy, 2),
        fit={kind: _fit(lengths, kind) for kind in graph.files},
        original_note=None if original_note is None else dict(original_note),
        threads=threads,
        provider=provider,
        machine=machine(),
    )


def sweep(graph: MeasuredGraph, params: LatencyParams) -> SweptGraph:
    """Try every optimization level, thread count and provider here; return all medians and the best for each kind."""
    length = sorted(params.lengths)[len(params.lengths) // 2]
    fed = graph.feed(length)
    cores = int(machine()["cores"])
    providers = [name for name in ort.get_available_providers() if name != "AzureExecutionProvider"]  # remote calls
    combinations = [
        {"optimization": level, "threads": threads, "provider": provider}
        for provider in providers
        for threads in sorted({0, 1, max(1, cores // 2), cores})  # 0: ONNX Runtime's choice
        for level in OPTIMIZATIONS
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, path in graph.files.items():
        sessions = {
            str(number): open_session(
                path,
                threads=int(c["threads"]),
                optimization=str(c["optimization"]),
                provider=str(c["provider"]),
                stop_spinning=True,
            )
            for number, c in enumerate(combinations)
        }
        runs = {name: partial(session.run, None, fed) for name, session in sessions.items()}
        times = _interleaved(runs, params.rounds, params.seconds)
        found[kind] = [
            {**combination, "ms": float(np.median(times[str(number)]) * 1e3)}
            for number, combination in enumerate(combinations)
        ]
    best = {kind: min(tried, key=lambda entry: entry["ms"]) for kind, tried in found.items()}
    return SweptGraph(graph.contract.length, length, best, found, machine())


def speedup_interval(baseline: ArrayLike, faster: ArrayLike) -> tuple[float, float, float]:
    """Return the median over rounds of baseline / faster, and its 95 % bootstrap interval.

    The two times of a round were taken one right after the other, so that whatever slowed the machine down for a
    while slowed both, and their ratio says the least about it.
    """
    ratios = np.array(baseline) / np.array(faster)
    _, resampled = _resampled(len(ratios))
    low, high = np.percentile(np.median(ratios[resampled], axis=-1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def compared(
    times: Mapping[str, Sequence[float]], bare: Mapping[str, Sequence[float] | np.ndarray]
) -> dict[str, float | dict[str, float]]:
    """Return how the quantized graph compares with the float32 one, and with what this machine could make of that.

    The ceiling is the time that the float32 graph would take if its multiplications went over to the quantized kernels
    and nothing else changed: its own, less that of the bare float32 kernels, plus that of the bare quantized ones with
    what quantizes their activations. The share is that over the quantized graph's time: far below 1, a path is slow.

    What the float32 graph takes beside its multiplications is the median over rounds of a difference: cut off at 0 in
    each round, its noise on a busy machine would add up to a third of a short graph's time.

    Args:
        times: Seconds of each graph by kind, round by round.
        bare: Seconds of the multiplications alone, in the same rounds.
    """
    floating, quantized = np.array(times[FLOAT]), np.array(times[QUANTIZED])
    kernels_float, kernels_quantized = np.array(bare[FLOAT]), np.array(bare[QUANTIZED])

    def rest(picked: np.ndarray) -> np.ndarray:
        return np.maximum(np.median((floating - kernels_float)[picked], axis=-1, keepdims=True), 0)

    def share_of(picked: np.ndarray) -> np.ndarray:
        return np.median((rest(picked) + kernels_quantized[picked]) / quantized[picked], axis=-1)

    speedup, speedup_low, speedup_high = speedup_interval(floating, quantized)
    every, resampled = _resampled(len(floating))
    share_low, share_high = np.percentile(share_of(resampled), [2.5, 97.5])
    return {
        "speedup": speedup,
        "speedup_low": speedup_low,
        "speedup_high": speedup_high,
        "kernels": {kind: float(np.median(bare[kind]) * 1e3) for kind in (FLOAT, QUANTIZED)},
        "ceiling": float(np.median(floating / (rest(every) + kernels_quantized))),
        "share": float(share_of(every)[0]),
        "share_low": float(share_low),
        "share_high": float(share_high),
    }


def _resampled(rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all rounds, [1, rounds], and of rounds drawn for a bootstrap, [resamples, rounds]."""
    return np.arange(rounds)[None], np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))


def _attempt(
    runs: Mapping[str, Callable[[], object]],
    needed: Mapping[Kernel, int],
    params: LatencyParams,
    threads: int,
    provider: str,
) -> Attempt:
    """Measure one length once, graphs and bare kernels in the same rounds."""
    with others_load() as load, ExitStack() as stack:
        bare = {
            kind: stack.enter_context(BareKernels(needed, kind, threads, provider)) for kind in (runs if needed else ())
        }
        turns = {**runs, **{f"bare {kind}": session.run for kind, session in bare.items()}}
        times = _interleaved(turns, params.rounds, params.seconds)
        rounds = len(times[FLOAT])
        kernel_times = {kind: session.seconds(rounds) for kind, session in bare.items()}
        busy = load()
    entry: dict[str, Any] = {"rounds": rounds}
    entry |= {f"{kind}_ms": float(np.median(times[kind]) * 1e3) for kind in runs}
    if QUANTIZED in runs:
        entry |= compared(times, kernel_times or dict.fromkeys(runs, np.zeros(rounds)))
    return Attempt(entry, busy)


def _interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Time every run once a round, for ``rounds`` rounds and at least ``seconds``; return seconds a run.

    Neighbours change places from round to round, so that neither is always the first, and none runs twice in a row: it
    would find its own weights in the caches.
    """
    for run in runs.values():
        for _ in range(_WARM_UP):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, began, done = list(runs), time.perf_counter(), 0
    while done < rounds or (time.perf_counter() - began < seconds and done < _MOST_ROUNDS):
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
        order = [name for pair in range(0, len(order), 2) for name in reversed(order[pair : pair + 2])]
        done += 1
    return times


def _fit(lengths: Sequence[LengthLatency], kind: str) -> LinearFit:
    slope, start = np.polyfit([entry.length for entry in lengths], [entry.ms(kind) or 0.0 for entry in lengths], 1)
    return LinearFit(float(slope), float(start))
