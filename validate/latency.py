"""Measures the speed-up of the quantized graph over the float32 one, by interleaved runs in one process.

Only ratios are judged: absolute times depend on the machine. Both graphs run in every round, in alternating order, so
that disturbances meet both; the interval is a bootstrap over whole rounds. The multiplications alone, float32 and
quantized, run in the same rounds: they give the speed that the quantized graph could reach on this machine. A component
that stays float32 is timed alone. A graph whose float32 weights do not fit into memory is timed in pieces.
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
from omni.segments import fits
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.session import OPTIMIZATIONS, open_session
from validate.bare import Kernel
from validate.ceiling import BareKernels, kernels
from validate.measured import MeasuredGraph
from validate.patience import Attempt, Patience
from validate.pieces import Piece, pieces

__all__ = ["compared", "measure", "speedup_interval", "sweep"]

_WARM_UP = 3
_LONG_SECONDS = 30.0  # after which half of the rounds are enough: the longer a run, the less it varies
_MAX_ROUNDS = 400  # the profiler stores every node of every run: hundreds of thousands in seconds, if runs are short
_RESAMPLES = 2000
_BARE = "bare "  # begins the name of a kind's multiplications alone
_BUSY = "cores_busy_with_other_processes"


def measure(
    graph: MeasuredGraph,
    params: LatencyParams,
    threads: int,
    provider: str,
    patience: Patience,
    original_note: Mapping[str, float] | None = None,
) -> GraphLatency:
    """Return, by length, the median time of each kind of graph and, for a quantized one, the speed-up.

    A measurement is repeated, as long as ``patience`` lasts, if other processes kept the processor busy and the result
    is uncertain.

    Args:
        graph: The graph.
        params: Lengths, and the duration of their measurement.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.
        provider: Execution provider.
        patience: Time left for repeated measurements.
        original_note: ``ms_per_token`` and ``ms`` that the original model card gives for this graph.
    """
    cut = QUANTIZED in graph.files and not fits(graph.files[FLOAT])
    found = pieces(graph, params.lengths) if cut else [graph]
    attempts: dict[int, list[Attempt]] = {length: [] for length in params.lengths}
    whole: dict[int, float] = {}
    with others_load() as load, progress("latency", len(found) * len(params.lengths)) as advance:
        for part in found:
            needed = {length: kernels(part, length) if QUANTIZED in part.files else {} for length in params.lengths}
            sessions = {
                kind: part.open(kind, threads=threads, provider=provider, stop_spinning=True) for kind in part.files
            }
            for length in params.lengths:
                runs = {kind: partial(session.run, None, part.feed(length)) for kind, session in sessions.items()}
                attempt = partial(_attempt, runs, needed[length], params, threads, provider)
                attempts[length].append(patience.narrowest(attempt))
                advance(1)
            del sessions, runs, attempt  # before the next piece is opened
        if cut:
            session = graph.open(QUANTIZED, threads=threads, provider=provider)
            for length in params.lengths:
                timed = _interleaved({QUANTIZED: partial(session.run, None, graph.feed(length))}, params.rounds, 0)
                whole[length] = float(np.median(timed[QUANTIZED]) * 1e3)
        busy = load()
    times = [part.times if isinstance(part, Piece) else 1 for part in found]
    lengths = [
        LengthLatency(length=length, whole_ms=whole.get(length), **_summed(attempts[length], times))
        for length in params.lengths
    ]
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
        pieces=sum(times),
    )


def sweep(graph: MeasuredGraph, params: LatencyParams) -> SweptGraph:
    """Time every optimization level, thread count and provider; return all medians, and the best for each kind."""
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

    The two times of a round are measured one right after the other, so that a temporary slowdown of the machine affects
    both, and hardly their ratio.
    """
    ratios = np.array(baseline) / np.array(faster)
    _, resampled = _resampled(len(ratios))
    low, high = np.percentile(np.median(ratios[resampled], axis=-1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def compared(
    times: Mapping[str, Sequence[float] | np.ndarray], bare: Mapping[str, Sequence[float] | np.ndarray]
) -> dict[str, float | dict[str, float]]:
    """Return the speed-up of the quantized graph, the ceiling of this machine, and the share of it that is reached.

    The ceiling assumes the float32 graph with quantized kernels for its multiplications and no other change: its time,
    minus that of the float32 kernels alone, plus that of the quantized kernels alone, including the quantization of
    activations. The share is that time over the quantized graph's: far below 1, the quantized graph is slow elsewhere.

    The time of the float32 graph beside its multiplications is the median over rounds of a difference: clipped at 0 in
    every round, its noise on a busy machine would add up to a third of a short graph's time.

    Args:
        times: Time of each graph in seconds, by kind and round.
        bare: Time of the multiplications alone in seconds, in the same rounds.
    """
    floating, quantized = np.array(times[FLOAT]), np.array(times[QUANTIZED])
    kernels_float, kernels_quantized = np.array(bare[FLOAT]), np.array(bare[QUANTIZED])

    def rest(picked: np.ndarray) -> np.ndarray:
        return np.maximum(np.median((floating - kernels_float)[picked], axis=-1, keepdims=True), 0)

    def share_of(picked: np.ndarray) -> np.ndarray:
        return np.median((rest(picked) + kernels_quantized[picked]) / quantized[picked], axis=-1)

    speedup, speedup_low, speedup_high = speedup_interval(floating, quantized)
    all_rounds, resampled = _resampled(len(floating))
    share_low, share_high = np.percentile(share_of(resampled), [2.5, 97.5])
    return {
        "speedup": speedup,
        "speedup_low": speedup_low,
        "speedup_high": speedup_high,
        "kernels": {kind: float(np.median(bare[kind]) * 1e3) for kind in (FLOAT, QUANTIZED)},
        "ceiling": float(np.median(floating / (rest(all_rounds) + kernels_quantized))),
        "share": float(share_of(all_rounds)[0]),
        "share_low": float(share_low),
        "share_high": float(share_high),
    }


def _resampled(rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of all rounds, [1, rounds], and of bootstrap samples of rounds, [resamples, rounds]."""
    return np.arange(rounds)[None], np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))


def _attempt(
    runs: Mapping[str, Callable[[], object]],
    needed: Mapping[Kernel, int],
    params: LatencyParams,
    threads: int,
    provider: str,
) -> Attempt:
    """Measure one length once, with graphs and bare multiplications in the same rounds."""
    with others_load() as load, ExitStack() as stack:
        bare = {
            kind: stack.enter_context(BareKernels(needed, kind, threads, provider)) for kind in (runs if needed else ())
        }
        functions = {**runs, **{_BARE + kind: session.run for kind, session in bare.items()}}
        times = _interleaved(functions, params.rounds, params.seconds)
        rounds = len(times[FLOAT])
        seconds = {kind: np.array(times[kind]) for kind in runs}
        for kind in runs:
            seconds[_BARE + kind] = bare[kind].seconds(rounds) if needed else np.zeros(rounds)
        busy = load()
    return Attempt(_entry(seconds), busy, seconds)


def _entry(seconds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the fields of the report that follow from the seconds of each round."""
    kinds = [name for name in seconds if not name.startswith(_BARE)]
    entry: dict[str, Any] = {"rounds": len(seconds[FLOAT])}
    entry |= {f"{kind}_ms": float(np.median(seconds[kind]) * 1e3) for kind in kinds}
    if QUANTIZED in kinds:
        entry |= compared(seconds, {kind: seconds[_BARE + kind] for kind in kinds})
    return entry


def _summed(attempts: Sequence[Attempt], times: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a graph that was timed in pieces, of which some occur several times."""
    rounds = min(attempt.entry["rounds"] for attempt in attempts)
    counted = list(zip(times, attempts, strict=True))
    seconds = {
        name: np.sum([each * attempt.seconds[name][:rounds] for each, attempt in counted], axis=0)
        for name in attempts[0].seconds
    }
    told = [attempt.entry for attempt in attempts]
    busy = sum(entry[_BUSY] * entry["seconds"] for entry in told) / max(sum(entry["seconds"] for entry in told), 0.1)
    return {
        **_entry(seconds),
        "attempts": max(entry["attempts"] for entry in told),
        "seconds": round(sum(entry["seconds"] for entry in told), 1),
        _BUSY: round(busy, 2),
    }


def _interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Time every function once per round, for at least ``rounds`` rounds and ``seconds``; return seconds per run.

    Where ``rounds`` rounds take longer than ``_LONG_SECONDS``, half of them are enough.
    Neighbours swap places from round to round, so that neither is always the first, and none runs twice in a row, which
    would find its weights in the caches.
    """
    for run in runs.values():
        for _ in range(_WARM_UP):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, began, completed = list(runs), time.perf_counter(), 0

    def enough() -> bool:
        elapsed = time.perf_counter() - began
        if completed < rounds:
            return elapsed > _LONG_SECONDS and completed >= rounds / 2
        return elapsed >= seconds or completed >= _MAX_ROUNDS

    while not enough():
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
        order = [name for pair in range(0, len(order), 2) for name in reversed(order[pair : pair + 2])]
        completed += 1
    return times


def _fit(lengths: Sequence[LengthLatency], kind: str) -> LinearFit:
    slope, start = np.polyfit([entry.length for entry in lengths], [entry.ms(kind) or 0.0 for entry in lengths], 1)
    return LinearFit(float(slope), float(start))
