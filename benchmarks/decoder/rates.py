"""Measure a step of our quantized graphs: share of the machine's read bandwidth, a longer past, and sampling.

A step of one row multiplies each weight once, so it cannot be faster than the weights are read.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.decoder.bench import LONGER, Bench, cache_bytes
from benchmarks.decoder.contenders import FEWEST, ours
from benchmarks.measure import PATIENCE, Feeds, Run, Turns, Variant, by_operator, opened, speed, take_turns
from omni.decoder import LOGITS_TO_KEEP, DecoderSizes
from omni.resources import progress
from qwen_omni_onnx.sampling import Sampler
from qwen_omni_onnx.talker import SAMPLING

__all__ = ["Reader", "rates", "step_bytes"]

BUFFER_BYTES = 2**30  # far more than the caches of any processor
_KERNEL = "MatMulNBits"  # ONNX Runtime's operator for the block schemes
_DRAWS = 64  # rows of logits that are sampled from, one after another
_TABLES = ("cos_cache", "sin_cache")  # a step reads one row of each
_COPIES = 5


class Reader:
    """Reads a buffer from end to end by finding its largest value in NumPy, one chunk on each thread.

    On one core of AMD Zen 4, that was as fast as a sum, a scalar product or a maximum of other types, within 5 %: the
    memory sets the pace, not the arithmetic.

    Args:
        threads: Number of threads.
    """

    def __init__(self, threads: int) -> None:
        # Ones: zeros would be one page of the kernel's, mapped again and again.
        self._chunks = np.array_split(np.ones(BUFFER_BYTES // 4, np.float32), threads)
        self._threads = ThreadPoolExecutor(threads)
        self.nbytes = sum(chunk.nbytes for chunk in self._chunks)

    def __call__(self) -> None:
        """Read all of it once."""
        for _ in self._threads.map(np.max, self._chunks):
            pass


def rates(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return the machine's read bandwidth, and what is measured of a step of each quantized graph.

    The bandwidth is the best of all readings, so that the shares are rather too small than too large; a reading and a
    step take turns.

    Args:
        bench: What the graphs are made from.
        rounds: Largest number of rounds.
    """
    reader = Reader(bench.cores)
    short, long = bench.past, LONGER * bench.past
    read: dict[str, Turns] = {}
    steps: dict[str, dict[str, Any]] = {}
    with progress("bandwidth", len(bench.quantized)) as advance:
        for name in bench.quantized:
            contender = opened(partial(ours, bench, name))
            step = contender.step(bench.rows[: short + 1])
            read[name] = _turns(reader, step, rounds)
            slower = _turns(contender.step(bench.rows[: long + 1]), step, rounds)
            chosen = _turns(_sampling(bench), step, rounds)
            steps[name] = {
                "bytes": step_bytes(bench.graph(name), bench.size, short),
                "ms": _median(read[name][1]) * 1e3,
                "kernels": by_operator(bench.graph(name), bench.threads, _step(bench), bench.folder)[_KERNEL],
                "longer": {
                    "ms": _median(slower[0]) * 1e3,
                    "more_ms": (_median(slower[0]) - _median(slower[1])) * 1e3,
                    "times": _ratio(*slower),
                },
                "sampling": {"ms": _median(chosen[0]) * 1e3, "share": _ratio(*chosen)},
            }
            del contender, step
            advance(1)
    fastest = min(min(reading) for reading, _ in read.values())
    for name, found in steps.items():
        # The reader's best time for the bytes that a step reads, over the time that the step takes.
        at_best = [fastest / reader.nbytes * found["bytes"]] * len(read[name][1])
        found["share"] = _ratio(at_best, read[name][1])
    added = cache_bytes(bench.size, long) - cache_bytes(bench.size, short)
    return {
        "bytes_a_second": reader.nbytes / fastest,
        "buffer_bytes": reader.nbytes,
        "reading_threads": bench.cores,
        "longer_past": long,
        "longer_cache_bytes": cache_bytes(bench.size, long),
        "longer_read_ms": fastest / reader.nbytes * added * 1e3,
        "longer_copy_ms": _copy_seconds(cache_bytes(bench.size, long)) * 1e3,
        "steps": steps,
    }


def step_bytes(graph: Path, size: DecoderSizes, past: int) -> int:
    """Return the least number of bytes that a step reads: all weights but tables, and the keys and values of its past.

    Args:
        graph: ONNX file.
        size: Widths of the decoder.
        past: Number of tokens before the step.
    """
    initializers = ir.load(graph).graph.initializers
    weights = sum(
        value.const_value.nbytes for name, value in initializers.items() if value.const_value and name not in _TABLES
    )
    return weights + cache_bytes(size, past)


def _step(bench: Bench) -> Feeds:
    """Return the inputs of a step of the graph itself, without the run-time's shared buffers."""
    size = bench.size
    past = np.zeros((1, size.kv_heads, bench.past, size.head_dim), np.float32)
    names = [f"past_key_values.{layer}.{what}" for layer in range(size.layers) for what in ("key", "value")]
    mask = np.ones((1, bench.past + 1), np.int64)
    fed = {"inputs_embeds": bench.rows[None, :1], "attention_mask": mask, LOGITS_TO_KEEP: np.zeros((1, 1), np.int64)}
    return {**fed, **dict.fromkeys(names, past)}


def _sampling(bench: Bench) -> Run:
    """Return a function that chooses a token as the Talker does, each time from other logits."""
    vocabulary = bench.size.vocabulary
    sampler = Sampler(SAMPLING, vocabulary)
    logits = itertools.cycle(np.random.default_rng(0).standard_normal((_DRAWS, vocabulary), np.float32))
    return lambda: sampler.choose(next(logits))


def _turns(baseline: Run, own: Run, rounds: int) -> Turns:
    return take_turns(Variant.of_run("", baseline), Variant.of_run("", own), rounds, PATIENCE, FEWEST)


def _ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """Return the median over rounds of first over second, and its 95 % interval."""
    found = speed(first, second)
    return {"ratio": found.pop("speedup"), **found}


def _median(seconds: list[float]) -> float:
    return float(np.median(seconds))


def _copy_seconds(nbytes: int) -> float:
    """Return the best time of copying so many bytes on one thread."""
    source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    taken = []
    for _ in range(_COPIES):
        began = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - began)
    return min(taken)
