"""What a step of our quantized graphs makes of the machine, whether it copies its cache, and what is sampled beside it.

A step of one row multiplies each weight once: it cannot be faster than the weights are read.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np

from benchmarks.decoder.bandwidth import Reader, cache_bytes, copy_seconds, step_bytes
from benchmarks.decoder.bench import LONGER, Bench
from benchmarks.decoder.contest import FEWEST, PATIENCE, opened
from benchmarks.decoder.ways import Run, ours
from benchmarks.measure import Feeds, Turns, Variant, speed, take_turns
from benchmarks.profiling import by_operator
from omni.decoder import LOGITS_TO_KEEP
from omni.resources import progress
from qwen_omni_onnx.sampling import Sampler
from qwen_omni_onnx.talker import SAMPLING

__all__ = ["rates"]

_KERNEL = "MatMulNBits"  # ONNX Runtime's operator for the block schemes
_DRAWS = 64  # rows of logits to choose from, in turns


def rates(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return the machine's read bandwidth and, of each quantized graph, a step beside it, a longer past, and sampling.

    The bandwidth is the best of all readings, so that the shares are rather too small than too large; a reading and a
    step take turns.
    """
    reader = Reader(bench.cores)
    short, long = bench.past, LONGER * bench.past
    read: dict[str, Turns] = {}
    steps: dict[str, dict[str, Any]] = {}
    with progress("bandwidth", len(bench.quantized)) as advance:
        for name in bench.quantized:
            way = opened(partial(ours, bench, name))
            step = way.step(bench.rows[: short + 1])
            read[name] = _turns(reader, step, rounds)
            slower = _turns(way.step(bench.rows[: long + 1]), step, rounds)
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
            del way, step
            advance(1)
    fastest = min(min(reading) for reading, _ in read.values())
    for name, found in steps.items():
        # What the reader would take at its best for what a step reads, over what the step takes.
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
        "longer_copy_ms": copy_seconds(cache_bytes(bench.size, long)) * 1e3,
        "steps": steps,
    }


def _step(bench: Bench) -> Feeds:
    """Return what a step feeds the graph itself, without the run-time's shared buffers."""
    size = bench.size
    past = np.zeros((1, size.kv_heads, bench.past, size.head_dim), np.float32)
    names = [f"past_key_values.{layer}.{what}" for layer in range(size.layers) for what in ("key", "value")]
    mask = np.ones((1, bench.past + 1), np.int64)
    fed = {"inputs_embeds": bench.rows[None, :1], "attention_mask": mask, LOGITS_TO_KEEP: np.zeros((1, 1), np.int64)}
    return {**fed, **dict.fromkeys(names, past)}


def _sampling(bench: Bench) -> Run:
    """Return what chooses a token, each time from other logits, as the Talker does."""
    vocabulary = bench.size.vocabulary
    sampler = Sampler(SAMPLING, vocabulary)
    logits = itertools.cycle(np.random.default_rng(0).standard_normal((_DRAWS, vocabulary), np.float32))
    return lambda: sampler.choose(next(logits))


def _turns(baseline: Run, own: Run, rounds: int) -> Turns:
    def variant(run: Run) -> Variant:
        return Variant("", lambda _: run(), 0)

    return take_turns(variant(baseline), variant(own), rounds, PATIENCE, FEWEST)


def _ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """Return the median over rounds of first over second, and its 95 % interval."""
    found = speed(first, second)
    return {"ratio": found.pop("speedup"), **found}


def _median(seconds: list[float]) -> float:
    return float(np.median(seconds))
