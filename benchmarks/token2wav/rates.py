"""How much of what this machine can multiply our graphs make use of, and on what else their time goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from validate.subject import FLOAT, QUANTIZED

from benchmarks.profiling import by_operator
from benchmarks.token2wav.ways import Bench
from components.token2wav import STEP, VOCODER, bigvgan_config, dit_config
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.session import open_session

__all__ = ["matmul_rate", "rates", "step_operations", "vocoder_operations"]

_SIZE = 2048  # of the square matrices that stand for the machine
_RUNS, _TRIES = 5, 20
_BRANCHES = 2  # of classifier-free guidance
_KERNEL = 7  # of the vocoder's first and last convolution


def rates(bench: Bench, frames: int, vocoded: int) -> dict[str, Any]:
    """Return of step and vocoder, float32 and INT8, operations per second, their share of the machine's, and a profile.

    Args:
        bench: what is measured.
        frames: of mel, of an evaluation with guidance.
        vocoded: mel frames that the vocoder speaks.
    """
    config = read_config(bench.subject.companions)
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
            part = bench.subject.each[name]
            seconds = _median_seconds(part.graphs[kind], bench.threads, part.feed(length))
            graphs[name] = {
                "operations": operations,
                "operations_a_second": operations / seconds,
                "share": operations / seconds / most,
                "by_operator": by_operator(part.graphs[kind], bench.threads, part.feed(length), bench.folder),
            }
        found[kind] = {"matmul_operations_a_second": most, "graphs": graphs}
    return found


def step_operations(dit: Mapping[str, Any], frames: int) -> int:
    """Count the additions and multiplications of all matrix products in one evaluation with guidance.

    Blocks are whole: frames that fill up the last one count, as they take their time.
    """
    width, mels, block = dit["hidden_size"], dit["mel_dim"], dit["block_size"]
    projections = 4 * width * width + 2 * width * width * dit["ff_mult"]
    blocks_seen = dit["num_hidden_layers"] + len(dit["look_backward_layers"]) + len(dit["look_ahead_layers"])
    attention = 2 * width * block * blocks_seen  # scores, and the mixing of values
    each = _BRANCHES * (dit["num_hidden_layers"] * projections + attention + width * mels)
    return 2 * (-(-frames // block) * block) * (each + mels * width)


def vocoder_operations(bigvgan: Mapping[str, Any], frames: int) -> int:
    """Count the additions and multiplications of all convolutions but the activations' filters of a few taps."""
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
    """Return how many operations per second one large matrix multiplication reaches in ONNX Runtime here, at best.

    Args:
        threads: of the session.
        integer: UINT8 times INT8, where otherwise float32.
    """
    random = np.random.default_rng(0)
    shape = (_SIZE, _SIZE)
    if integer:
        constant, fed = random.integers(-127, 128, shape, np.int8), random.integers(0, 256, shape, np.uint8)
        operator, gives = "MatMulInteger", onnx.TensorProto.INT32
    else:
        constant, fed = (random.standard_normal(shape, np.float32) for _ in range(2))
        operator, gives = "MatMul", onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(fed.dtype), shape)],
        [helper.make_tensor_value_info("y", gives, shape)],
        [numpy_helper.from_array(constant, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = open_session(model.SerializeToString(), threads=threads, stop_spinning=True)
    return 2 * _SIZE**3 / min(_seconds(session, {"a": fed}) for _ in range(_TRIES))


def _median_seconds(graph: Path, threads: int, fed: Mapping[str, np.ndarray]) -> float:
    """Time a session such as the run-time opens."""
    session = open_session(graph, threads=threads, stop_spinning=True, low_memory=True)
    return float(np.median([_seconds(session, fed) for _ in range(1 + _RUNS)][1:]))


def _seconds(session: Any, fed: Mapping[str, np.ndarray]) -> float:
    began = time.perf_counter()
    session.run(None, dict(fed))
    return time.perf_counter() - began
