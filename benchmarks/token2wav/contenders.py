"""Run token2wav in transformers' modules, in the same as exported, and in our graphs, and compare these in turns.

The unit of the DiT is one evaluation with guidance: an utterance takes 36, which all cost the same. That of the vocoder
is a second of speech.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.frameworks import OPENVINO_SPINS, PYTORCH_SPINS, compiled, openvino_installed, original
from benchmarks.measure import Feeds, Run, Timings, Turns, median_seconds, speed, speed_of_sum, time_run
from benchmarks.token2wav.workers import DIT_GRAPH, VOCODER_GRAPH, dit_inputs
from benchmarks.variants import disk_bytes
from components.token2wav import BIGVGAN, DIT
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import FLOAT, NEAR_TIE, QUANTIZED
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import compare as distance
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.sampler import REFERENCE, variants
from qwen_omni_onnx.token2wav.golden import EVALUATIONS, open_graphs
from qwen_omni_onnx.token2wav.runtime import SETTINGS, Token2Wav
from validate.measured import MeasuredComponent

__all__ = [
    "BASELINES",
    "CONTEXT_FRAMES",
    "EXPORTED",
    "FLOAT32",
    "INT8",
    "OPENVINO",
    "PYTORCH",
    "VOCODED_FRAMES",
    "Bench",
    "Comparison",
    "Contender",
    "builders",
    "compare",
    "our_condition",
    "our_evaluation",
    "reason_not_to_run",
    "require_memory_for_pytorch",
]

PYTORCH, EXPORTED, OPENVINO = "PyTorch float32", "exported as it is, ORT", "exported as it is, OpenVINO"
FLOAT32, INT8 = "ours float32", "ours INT8"
BASELINES = (PYTORCH, FLOAT32)
# Mel frames that qwen_omni_onnx.token2wav turns into sound at once, and that it hears on each side of them.
VOCODED_FRAMES, CONTEXT_FRAMES = 256, 16
_FEWEST = 2  # rounds, however long they take

# Number of tensors of the mask's size, [2, heads, frames, frames] float32, that are in memory at most. At 3000 frames
# PyTorch took 2; at 1000 the exported graph took 14 in ONNX Runtime, which doubles what it asks for.
_MASKS = {PYTORCH: 3, EXPORTED: 32, OPENVINO: 32}
_BESIDE = 5 * 2**30  # bytes for what else is in memory: weights, and the contender that takes turns with this one


@dataclass(frozen=True)
class Bench:
    """What every contender is made from.

    Attributes:
        measured: token2wav, as built under ``models/``.
        threads: Intra-op threads of each session, as ``params.yaml`` says; 0 lets ONNX Runtime choose.
        cores: Number of threads of other runtimes, which want a number.
        folder: Folder of graphs that are made on the way.
    """

    measured: MeasuredComponent
    threads: int
    cores: int
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the graphs were exported with."""
        return artifact.read_json(self.measured.companions / SETTINGS)

    def open(self, kind: str) -> Token2Wav:
        """Open our graphs: ``FLOAT`` or ``QUANTIZED``."""
        return open_graphs(self.measured.files(kind), self.measured.companions, self.threads)

    @property
    def time(self) -> float:
        """Time of the evaluation that is compared: all 36 cost the same, and golden cases hold this one."""
        return float(variants(self.settings["variants"])[REFERENCE].times()[EVALUATIONS[-1]])


@dataclass(frozen=True)
class Contender(measure.Contender):
    """An implementation of token2wav.

    Attributes:
        name: Name in the tables.
        nbytes: Size of its weights in bytes.
        spins: See :class:`benchmarks.measure.Variant`.
        evaluation: Takes an utterance (``codes`` [1, codes], ``code_lens``, ``cond``, ``ref_mel``, ``noise``); returns
            a function that computes a velocity, with guidance, [1, 2 * codes, 80].
        vocoder: Takes mel frames [frames, 80] and the range to be spoken; returns a function that computes its
            waveform. Our run-time hears the frames around the range; the others run on the range alone, as they would
            on a whole utterance.
        once: Takes an utterance; returns a function that computes what is computed once, before all evaluations.
    """

    evaluation: Callable[[Feeds], Run]
    vocoder: Callable[[np.ndarray, int, int], Run]
    once: Callable[[Feeds], Run] = lambda fed: lambda: None


def builders(bench: Bench) -> dict[str, Callable[[], Contender]]:
    """Return a function that makes each contender, by name: PyTorch, then its exported graphs, then ours.

    The exported graphs must be in the bench's folder.
    """
    made = {PYTORCH: partial(_pytorch, bench), EXPORTED: partial(_exported, bench)}
    if openvino_installed():
        made[OPENVINO] = partial(_openvino, bench)
    return {**made, FLOAT32: partial(_ours, bench, FLOAT32, FLOAT), INT8: partial(_ours, bench, INT8, QUANTIZED)}


def _pytorch(bench: Bench) -> Contender:
    import torch

    model = original(bench.measured.name, bench.cores)
    dit, bigvgan = (getattr(model, name.rpartition(".")[2]) for name in (DIT, BIGVGAN))

    def run(module: Any, *args: Any, **named: Any) -> np.ndarray:
        with torch.inference_mode():
            return module(*args, **named).numpy()

    def run_dit(inputs: Feeds) -> np.ndarray:
        return run(dit, **{name: torch.from_numpy(array) for name, array in inputs.items()})

    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    return _whole(bench, PYTORCH, nbytes, run_dit, lambda mel: run(bigvgan, torch.from_numpy(mel)), PYTORCH_SPINS)


def _exported(bench: Bench) -> Contender:
    """Use ONNX Runtime's own settings, but that its threads do not spin into the runs of the others."""
    graphs = [bench.folder / name for name in (DIT_GRAPH, VOCODER_GRAPH)]
    dit, bigvgan = (open_session(graph, threads=bench.threads, stop_spinning=True) for graph in graphs)
    mel_input = bigvgan.get_inputs()[0].name

    def run_vocoder(mel: np.ndarray) -> np.ndarray:
        return bigvgan.run(None, {mel_input: mel})[0]

    nbytes = sum(map(disk_bytes, graphs))
    return _whole(bench, EXPORTED, nbytes, lambda inputs: dit.run(None, dict(inputs))[0], run_vocoder)


def _openvino(bench: Bench) -> Contender:
    graphs = [bench.folder / name for name in (DIT_GRAPH, VOCODER_GRAPH)]
    dit, bigvgan = (compiled(graph, bench.cores, "f32")[0] for graph in graphs)
    mel_input = open_session(graphs[1], optimization="disabled").get_inputs()[0].name
    nbytes = sum(map(disk_bytes, graphs))
    return _whole(bench, OPENVINO, nbytes, dit, lambda mel: bigvgan({mel_input: mel}), OPENVINO_SPINS)


def _whole(
    bench: Bench,
    name: str,
    nbytes: int,
    run_dit: Callable[[Feeds], np.ndarray],
    run_vocoder: Callable[[np.ndarray], np.ndarray],
    spins: float = 0.0,
) -> Contender:
    """Return a contender whose DiT and vocoder take and return what transformers' modules do."""
    scale, time = bench.settings["guidance_scale"], bench.time

    def evaluation(fed: Feeds) -> Run:
        inputs = dit_inputs(fed, time)
        return lambda: _guided(run_dit(inputs), scale)

    def vocoder(mel: np.ndarray, start: int, end: int) -> Run:
        vocoded = np.ascontiguousarray(mel[start:end].T[None])
        return lambda: run_vocoder(vocoded)

    return Contender(name, nbytes, evaluation, vocoder, spins=spins)


def _guided(both: np.ndarray, scale: float) -> np.ndarray:
    """Return the velocity [1, frames, 80] of the DiT's two rows, with classifier-free guidance."""
    conditioned, unconditioned = np.split(both, 2)
    return conditioned + (conditioned - unconditioned) * np.float32(scale)


def _ours(bench: Bench, name: str, kind: str) -> Contender:
    model = bench.open(kind)
    return Contender(
        name,
        sum(map(disk_bytes, bench.measured.files(kind).values())),
        lambda fed: our_evaluation(model, fed, bench.time),
        lambda mel, start, end: lambda: model.vocode_chunk(mel, start, end),
        lambda fed: lambda: our_condition(model, fed),
    )


def our_condition(model: Token2Wav, fed: Feeds) -> dict[str, np.ndarray]:
    """Return what our run-time computes once an utterance."""
    return model.condition(**{name: fed[name] for name in ("codes", "code_lens", "cond", "ref_mel")})


def our_evaluation(model: Token2Wav, fed: Feeds, time: float) -> Run:
    """Return a function that computes the velocity of an utterance [1, 2 * codes, 80] at a time."""
    velocity, state = model.velocity(our_condition(model, fed)), model.blocked(fed["noise"])
    row, frames = int(np.searchsorted(model.times, np.float32(time))), fed["noise"].shape[1]
    return lambda: velocity(state, row).reshape(1, -1, model.mels)[:, :frames]


def require_memory_for_pytorch(heads: int, frames: int) -> None:
    """Refuse a length at which transformers' own DiT, which all others are compared with, does not fit the memory.

    Args:
        heads: Number of the DiT's attention heads.
        frames: Number of mel frames.

    Raises:
        UserError: It does not fit.
    """
    reason = reason_not_to_run(PYTORCH, heads, frames)
    if reason:
        raise UserError(f"--seconds: PyTorch {reason}; give a shorter length")


def reason_not_to_run(contender: str, heads: int, frames: int) -> str | None:
    """Return why a contender cannot evaluate an utterance in the memory that is free; None if it can, as ours can.

    Memory is estimated and not tried: a contender that fits by itself may not fit beside the one that it takes turns
    with, and the kernel then kills the whole benchmark.

    Args:
        contender: Name of the contender.
        heads: Number of the DiT's attention heads.
        frames: Number of mel frames.
    """
    needed, free = _MASKS.get(contender, 0) * 2 * heads * frames * frames * 4 + _BESIDE, _available()
    return f"takes {needed / 1e9:.0f} GB for {frames} mel frames, {free / 1e9:.0f} are free" if needed > free else None


def _available() -> int:
    import psutil

    return psutil.virtual_memory().available


@dataclass(frozen=True)
class Comparison:
    """What all contenders compute.

    Attributes:
        utterances: Utterances by their length in seconds.
        mel: Mel frames for the vocoder [VOCODED_FRAMES + 2 * CONTEXT_FRAMES, 80].
        frame: Seconds of a mel frame.
        evaluations: Number of evaluations of the ODE that an utterance takes.
        rounds: Largest number of rounds for which two contenders take turns.
        skipped: Reasons why a contender is not run, by its name and the length.
    """

    utterances: Mapping[float, Feeds]
    mel: np.ndarray
    frame: float
    evaluations: int
    rounds: int
    skipped: Mapping[str, Mapping[float, str]]

    def lengths(self, contender: str) -> list[float]:
        """Return the lengths in seconds at which a contender is run."""
        return [seconds for seconds in self.utterances if seconds not in self.skipped.get(contender, {})]


def compare(task: Comparison, made: Mapping[str, Callable[[], Contender]]) -> list[dict[str, Any]]:
    """Return a row for each contender: how close it comes to PyTorch, and how fast it is.

    Args:
        task: What all contenders compute.
        made: Functions that make the contenders, by name; both baselines are among them.
    """
    expected: dict[Any, np.ndarray] = {}

    def judge(contender: Contender) -> dict[str, Any]:
        outputs = _outputs(contender, task)
        if not expected:  # the first contender is PyTorch
            expected.update(outputs)
        found: dict[Any, float] = {}
        for what, output in outputs.items():
            try:
                found[what] = distance(expected[what], output, NEAR_TIE).sqnr_db
            except ValueError as error:
                raise UserError(f"{contender.name}: {what}: {error}") from None
        vocoder = found.pop("vocoder")
        sqnr = {"evaluation": _by_length(found), "vocoder": vocoder}
        skipped = _by_length(task.skipped.get(contender.name, {}))
        return {"mb": contender.nbytes / 1e6, "sqnr_db": sqnr, "skipped": skipped}

    rows, timings = measure.compare(made, BASELINES, judge, partial(_time, task))
    return [row | _speeds(timings[name], task, task.lengths(name)) for name, row in rows.items()]


def _outputs(contender: Contender, task: Comparison) -> dict[Any, np.ndarray]:
    """Return the velocity of one evaluation by length in seconds, and the vocoder's waveform."""
    found: dict[Any, np.ndarray] = {}
    for seconds in task.lengths(contender.name):
        found[seconds] = np.array(contender.evaluation(task.utterances[seconds])())
    found["vocoder"] = np.array(contender.vocoder(task.mel, 0, len(task.mel))()).reshape(-1)
    return found


def _time(task: Comparison, baseline: Contender, own: Contender) -> Timings:
    """Time an evaluation and what is computed once, by name and length, and the vocoder."""

    def turns(prepare: Callable[[Contender], Run]) -> Turns:
        return time_run(baseline, own, prepare, task.rounds, _FEWEST)

    found: dict[Any, Turns] = {}
    for seconds in task.lengths(own.name):
        fed = task.utterances[seconds]
        found["evaluation", seconds] = turns(methodcaller("evaluation", fed))
        found["once", seconds] = turns(methodcaller("once", fed))
    vocoded = (task.mel, CONTEXT_FRAMES, CONTEXT_FRAMES + VOCODED_FRAMES)
    return {**found, "vocoder": turns(methodcaller("vocoder", *vocoded))}


def _speeds(timings: Mapping[str, Timings], task: Comparison, lengths: list[float]) -> dict[str, Any]:
    """Return times and speeds of a contender: of an evaluation, of the vocoder, and of everything together."""
    vocoded_seconds = VOCODED_FRAMES * task.frame

    def median(what: Any) -> float:
        return median_seconds(turns[what] for turns in timings.values())

    def speeds(what: Any) -> dict[str, dict[str, float]]:
        return {against: speed(*turns[what]) for against, turns in timings.items()}

    vocoded = median("vocoder") / vocoded_seconds
    evaluation, whole = {}, {}
    for seconds in lengths:
        one, once = ("evaluation", seconds), ("once", seconds)
        weights = {one: task.evaluations / seconds, once: 1 / seconds, "vocoder": 1 / vocoded_seconds}
        evaluation[seconds] = {"ms": median(one) * 1e3, "speed": speeds(one)}
        whole[seconds] = {
            "seconds_a_second": (task.evaluations * median(one) + median(once)) / seconds + vocoded,
            "speed": {
                against: speed_of_sum([(weight, turns[what]) for what, weight in weights.items()])
                for against, turns in timings.items()
            },
        }
    vocoder = {"seconds_a_second": vocoded, "speed": speeds("vocoder")}
    return {"evaluation": _by_length(evaluation), "vocoder": vocoder, "whole": _by_length(whole)}


def _by_length(found: Mapping[float, Any]) -> dict[str, Any]:
    return {f"{seconds:g}": value for seconds, value in found.items()}
