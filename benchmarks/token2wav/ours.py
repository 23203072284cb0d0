"""Measure our graphs alone: linearity of time and memory, a stream, and the share of the machine that they use."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.building import ROOT
from benchmarks.measure import by_operator
from benchmarks.token2wav.contenders import Bench, our_condition, our_evaluation
from benchmarks.variants import disk_bytes
from components.token2wav import STEP, VOCODER, bigvgan_config, dit_config
from omni.inputs import HELD_OUT, feed, read
from omni.resources import measure_module
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.sampler import REFERENCE
from qwen_omni_onnx.token2wav import Token2Wav, Window, stream
from qwen_omni_onnx.token2wav.golden import complete
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE

__all__ = [
    "codes_of",
    "linearity",
    "matmul_rate",
    "mel_frames",
    "memory",
    "rates",
    "step_operations",
    "streaming",
    "utterance",
    "vocoder_operations",
]

LENGTHS = (5.0, 15.0, 30.0, 60.0)  # seconds of speech
VOCODED = 15.0  # seconds of a longer utterance that the vocoder speaks: its pieces are of one size
SHORT, LONG = 1.0, 60.0  # seconds of speech whose memory is measured
STREAMED = 3.0  # seconds
_ROUNDS = 3
_FEWEST_CODES = 2  # the shortest input of the exported graphs
_LIBRARIES = ("numpy", "onnxruntime", "qwen_omni_onnx.token2wav.golden")
_SIZE = 2048  # rows and columns of the matrices that stand for the machine
_RUNS, _TRIES = 5, 20
_BRANCHES = 2  # rows of a batch with classifier-free guidance
_KERNEL = 7  # taps of the vocoder's first and last convolution


def codes_of(bench: Bench, seconds: float) -> int:
    """Return the number of codes of so many seconds of speech."""
    settings = bench.settings
    return max(
        _FEWEST_CODES, round(seconds * OUTPUT_SAMPLE_RATE / (settings["repeats"] * settings["samples_per_frame"]))
    )


def utterance(bench: Bench, codes: int) -> dict[str, np.ndarray]:
    """Return one row of so many held-out codes with its length, speaker and noise."""
    measured = bench.measured
    recordings = list(read(measured.name, HELD_OUT).values())
    return complete(feed(measured.contract, recordings, [codes]), measured.companions, measured.contract, 0)


def mel_frames(bench: Bench, frames: int) -> np.ndarray:
    """Return mel frames [frames, 80] as the vocoder is fed them, from our float32 graphs and their cheapest variant."""
    model = bench.open(FLOAT)
    fed = utterance(bench, -(-frames // model.repeats))
    return model.mel(**fed, variant=_cheapest(model))[0, :frames]


def linearity(bench: Bench, kind: str, mel: np.ndarray) -> dict[str, Any]:
    """Return the cost of a second of speech by length, with all evaluations, and its largest deviation from the mean.

    Args:
        bench: What is measured.
        kind: Kind of our graphs: ``FLOAT`` or ``QUANTIZED``.
        mel: Mel frames for the vocoder [frames, 80], which are repeated up to the length.
    """
    model = bench.open(kind)
    feeds = {seconds: utterance(bench, codes_of(bench, seconds)) for seconds in LENGTHS}
    evaluations = {seconds: our_evaluation(model, fed, bench.time) for seconds, fed in feeds.items()}
    taken = [[_seconds(run) for run in evaluations.values()] for _ in range(1 + _ROUNDS)]
    medians = np.median(taken[1:], axis=0)  # the first round warms up
    costs = {}
    for number, (seconds, fed) in enumerate(feeds.items()):
        once = _seconds(partial(our_condition, model, fed))
        vocoded = min(seconds, VOCODED)
        frames = np.resize(mel, (round(fed["noise"].shape[1] * vocoded / seconds), model.mels))
        vocoder = _seconds(partial(model.vocode, frames))
        evaluated = model.variants[REFERENCE].evaluations * float(medians[number])
        costs[seconds] = (once + evaluated) / seconds + vocoder / vocoded
    mean = sum(costs.values()) / len(costs)
    return {
        "seconds_a_second": {f"{seconds:g}": cost for seconds, cost in costs.items()},
        "deviation": max(abs(cost / mean - 1) for cost in costs.values()),
        "vocoded_seconds": VOCODED,
    }


def memory(bench: Bench, kind: str) -> dict[str, float]:
    """Return the peak memory in bytes of a process that speaks a short utterance, and of one that speaks a long one.

    Beside these are the memory of its libraries, and the size of the weights: that of the graphs' files.

    Args:
        bench: What is measured.
        kind: Kind of our graphs: ``FLOAT`` or ``QUANTIZED``.
    """
    graphs = bench.measured.files(kind)
    request = {
        "graphs": {name: str(graph.resolve()) for name, graph in graphs.items()},
        "folder": str(bench.measured.companions.resolve()),
        "threads": bench.threads,
    }
    short, long = (json.dumps({**request, "codes": codes_of(bench, seconds)}) for seconds in (SHORT, LONG))
    with contextlib.chdir(ROOT):
        peaks = [measure_module("benchmarks.token2wav.workers", "speak", one) for one in (short, long)]
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
    """Return how soon and how close a stream of our INT8 graphs sounds, in the slowest and in the fastest variant.

    All codes are there: the times are those of the computation, which keeps up with real time while the real-time
    factor is below 1.
    """
    model = bench.open(QUANTIZED)
    fed = utterance(bench, codes_of(bench, STREAMED))
    return [_streamed(model, fed, name) for name in (REFERENCE, _cheapest(model))]


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
        chunks = stream(model, one_by_one(), *voice, variant=variant, window=Window())
        spoken = [next(chunks)]
        firsts.append(time.perf_counter() - began)
        first_codes = len(taken)
        spoken += chunks
        totals.append(time.perf_counter() - began)
    waveform = np.concatenate(spoken)
    seconds = len(waveform) / OUTPUT_SAMPLE_RATE
    whole: list[np.ndarray] = []
    at_once = _seconds(lambda: whole.append(model.speak(codes, *voice, variant=variant)))
    return {
        "variant": variant,
        "seconds": seconds,
        "first_sound_seconds": float(np.median(firsts)),
        "first_sound_codes": first_codes,
        "real_time_factor": float(np.median(totals)) / seconds,
        "real_time_factor_at_once": at_once / seconds,
        "sqnr_db": sqnr_db(whole[0], waveform),
    }


def rates(bench: Bench, frames: int, vocoded: int) -> dict[str, Any]:
    """Return operations per second of step and vocoder, their share of the machine's, and a profile, by kind of graph.

    Args:
        bench: What is measured.
        frames: Number of mel frames of an evaluation with guidance.
        vocoded: Number of mel frames that the vocoder speaks.
    """
    config = read_config(bench.measured.companions)
    block = dit_config(config)["block_size"]
    work = {
        STEP: (-(-frames // block), step_operations(dit_config(config), frames)),
        VOCODER: (vocoded, vocoder_operations(bigvgan_config(config), vocoded)),
    }
    found: dict[str, Any] = {}
    for kind in (FLOAT, QUANTIZED):
        most = matmul_rate(bench.threads, integer=kind == QUANTIZED)
        graphs = {}
        for name, (length, operations) in work.items():
            graph = bench.measured.graphs[name]
            seconds = _median_seconds(graph.files[kind], bench.threads, graph.feed(length))
            graphs[name] = {
                "operations": operations,
                "operations_a_second": operations / seconds,
                "share": operations / seconds / most,
                "by_operator": by_operator(graph.files[kind], bench.threads, graph.feed(length), bench.folder),
            }
        found[kind] = {"matmul_operations_a_second": most, "graphs": graphs}
    return found


def step_operations(dit: Mapping[str, Any], frames: int) -> int:
    """Count the additions and multiplications of all matrix products in one evaluation with guidance.

    Blocks are whole: frames that fill up the last one count, as they take their time.

    Args:
        dit: Configuration of the DiT.
        frames: Number of mel frames.
    """
    width, mels, block = dit["hidden_size"], dit["mel_dim"], dit["block_size"]
    projections = 4 * width * width + 2 * width * width * dit["ff_mult"]
    blocks_seen = dit["num_hidden_layers"] + len(dit["look_backward_layers"]) + len(dit["look_ahead_layers"])
    attention = 2 * width * block * blocks_seen  # scores, and the mixing of values
    products = _BRANCHES * (dit["num_hidden_layers"] * projections + attention + width * mels)
    return 2 * (-(-frames // block) * block) * (products + mels * width)


def vocoder_operations(bigvgan: Mapping[str, Any], frames: int) -> int:
    """Count the additions and multiplications of all convolutions but the activations' filters of a few taps.

    Args:
        bigvgan: Configuration of the vocoder.
        frames: Number of mel frames.
    """
    width, samples = bigvgan["upsample_initial_channel"], frames
    products = samples * bigvgan["mel_dim"] * width * _KERNEL
    sizes, dilations = bigvgan["resblock_kernel_sizes"], bigvgan["resblock_dilation_sizes"]
    taps = sum(2 * size * len(dilated) for size, dilated in zip(sizes, dilations, strict=True))
    for rate, kernel in zip(bigvgan["upsample_rates"], bigvgan["upsample_kernel_sizes"], strict=True):
        products += samples * width * (width // 2) * kernel
        width, samples = width // 2, samples * rate
        products += samples * width * width * taps
    return 2 * (products + samples * width * _KERNEL)


def matmul_rate(threads: int, *, integer: bool) -> float:
    """Return the most operations per second that one large matrix multiplication reaches in ONNX Runtime here.

    Args:
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        integer: Whether UINT8 is multiplied with INT8, and not float32 with float32.
    """
    random = np.random.default_rng(0)
    shape = (_SIZE, _SIZE)
    if integer:
        constant, fed = random.integers(-127, 128, shape, np.int8), random.integers(0, 256, shape, np.uint8)
        operator, dtype = "MatMulInteger", onnx.TensorProto.INT32
    else:
        constant, fed = (random.standard_normal(shape, np.float32) for _ in range(2))
        operator, dtype = "MatMul", onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(fed.dtype), shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
        [numpy_helper.from_array(constant, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = open_session(model.SerializeToString(), threads=threads, stop_spinning=True)
    return 2 * _SIZE**3 / min(_seconds(partial(session.run, None, {"a": fed})) for _ in range(_TRIES))


def _median_seconds(graph: Path, threads: int, fed: Mapping[str, np.ndarray]) -> float:
    """Return the median time of a session such as the run-time opens."""
    session = open_session(graph, threads=threads, stop_spinning=True, low_memory=True)
    return float(np.median([_seconds(partial(session.run, None, dict(fed))) for _ in range(1 + _RUNS)][1:]))


def _cheapest(model: Token2Wav) -> str:
    """Return the name of the variant with the least to compute."""
    return min(model.variants, key=lambda name: model.variants[name].evaluations)


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
