"""How our graphs speak: whether time and memory grow with the length and no faster, and how a stream sounds."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from validate.subject import QUANTIZED

from benchmarks.building import ROOT
from benchmarks.token2wav.utterance import cheapest, codes_of, utterance
from benchmarks.token2wav.ways import Bench, our_condition, our_evaluation
from benchmarks.variants import disk_bytes
from omni.resources import measure_module
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.sampler import REFERENCE
from qwen_omni_onnx.token2wav import Token2Wav, Window, stream
from qwen_omni_onnx.token2wav.runtime import SAMPLE_RATE

__all__ = ["linearity", "memory", "streaming"]

LENGTHS = (5.0, 15.0, 30.0, 60.0)  # seconds of speech
VOCODED = 15.0  # seconds of a longer utterance that the vocoder speaks: its pieces are of one size
SHORT, LONG = 1.0, 60.0  # seconds whose memory is measured
STREAMED = 3.0  # seconds
_ROUNDS = 3
_LIBRARIES = ("numpy", "onnxruntime", "qwen_omni_onnx.token2wav.golden")


def linearity(bench: Bench, kind: str, mel: np.ndarray) -> dict[str, Any]:
    """Return what a second of speech costs by length, with all evaluations, and how far that is from the mean at most.

    Args:
        bench: what is measured.
        kind: of our graphs.
        mel: frames for the vocoder, [frames, 80]; it hears them again and again.
    """
    model = bench.open(kind)
    feds = {seconds: utterance(bench, codes_of(bench, seconds)) for seconds in LENGTHS}
    evaluations = {seconds: our_evaluation(model, fed, bench.time) for seconds, fed in feds.items()}
    taken = [[_seconds(run) for run in evaluations.values()] for _ in range(1 + _ROUNDS)]
    each = np.median(taken[1:], axis=0)  # the first one warms up
    costs = {}
    for number, (seconds, fed) in enumerate(feds.items()):
        once = _seconds(partial(our_condition, model, fed))
        vocoded = min(seconds, VOCODED)
        spoken = np.resize(mel, (round(fed["noise"].shape[1] * vocoded / seconds), model.mels))
        vocoder = _seconds(partial(model.vocode, spoken))
        evaluated = model.variants[REFERENCE].evaluations * float(each[number])
        costs[seconds] = (once + evaluated) / seconds + vocoder / vocoded
    mean = sum(costs.values()) / len(costs)
    return {
        "seconds_a_second": {f"{seconds:g}": cost for seconds, cost in costs.items()},
        "deviation": max(abs(cost / mean - 1) for cost in costs.values()),
        "vocoded_seconds": VOCODED,
    }


def memory(bench: Bench, kind: str) -> dict[str, float]:
    """Return the peak of a process that speaks, in bytes: a short utterance, a long one, and what of it is not theirs.

    That is its libraries, and the weights: the size of the graphs' files.
    """
    graphs = bench.subject.of_kind(kind)
    asked = {
        "graphs": {name: str(graph.resolve()) for name, graph in graphs.items()},
        "folder": str(bench.subject.companions.resolve()),
        "threads": bench.threads,
    }
    short, long = (json.dumps({**asked, "codes": codes_of(bench, seconds)}) for seconds in (SHORT, LONG))
    with contextlib.chdir(ROOT):
        peaks = [measure_module("benchmarks.token2wav.spoken", one) for one in (short, long)]
        libraries = measure_module("validate.imports", *_LIBRARIES)
    weights = sum(map(disk_bytes, graphs.values()))
    return {
        "short_seconds": SHORT,
        "long_seconds": LONG,
        "short_bytes": peaks[0],
        "long_bytes": peaks[1],
        "libraries_bytes": libraries,
        "weights_bytes": weights,
        "above_bytes": peaks[1] - libraries - weights,
    }


def streaming(bench: Bench) -> list[dict[str, Any]]:
    """Return, of our INT8 graphs and the slowest and the fastest variant, how soon and how close a stream sounds.

    All codes are there: the times are what is computed, and real time is kept while the real-time factor is below 1.
    """
    model = bench.open(QUANTIZED)
    fed = utterance(bench, codes_of(bench, STREAMED))
    return [_streamed(model, fed, name) for name in (REFERENCE, cheapest(model))]


def _streamed(model: Token2Wav, fed: dict[str, np.ndarray], variant: str) -> dict[str, Any]:
    codes, voice = fed["codes"][0], (fed["cond"], fed["ref_mel"])
    taken: list[int] = []

    def one_by_one() -> Iterator[np.ndarray]:
        for number in range(len(codes)):
            taken.append(number)
            yield codes[number : number + 1]

    firsts, totals = [], []
    for _ in range(_ROUNDS):
        taken.clear()
        began = time.perf_counter()
        spoken = stream(model, one_by_one(), *voice, variant=variant, window=Window())
        pieces = [next(spoken)]
        firsts.append(time.perf_counter() - began)
        heard = len(taken)
        pieces += spoken
        totals.append(time.perf_counter() - began)
    waveform = np.concatenate(pieces)
    seconds = len(waveform) / SAMPLE_RATE
    whole: list[np.ndarray] = []
    at_once = _seconds(lambda: whole.append(model.speak(codes, *voice, variant=variant)))
    return {
        "variant": variant,
        "seconds": seconds,
        "first_sound_seconds": float(np.median(firsts)),
        "first_sound_codes": heard,
        "real_time_factor": float(np.median(totals)) / seconds,
        "real_time_factor_at_once": at_once / seconds,
        "sqnr_db": sqnr_db(whole[0], waveform),
    }


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
