"""Ways to run token2wav: transformers' own modules, the same as exported, and this project's graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from validate.subject import FLOAT, QUANTIZED, Subject

from benchmarks.frameworks import OPENVINO_SPINS, PYTORCH_SPINS, compiled, openvino_installed, original
from benchmarks.token2wav.naive import DIT_GRAPH, VOCODER_GRAPH, dit_inputs, guided
from benchmarks.variants import disk_bytes
from components.token2wav import BIGVGAN, DIT
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.sampler import REFERENCE, variants
from qwen_omni_onnx.token2wav.golden import EVALUATIONS, open_graphs
from qwen_omni_onnx.token2wav.runtime import SETTINGS, Token2Wav

__all__ = [
    "EXPORTED",
    "FLOAT32",
    "INT8",
    "OPENVINO",
    "PYTORCH",
    "Bench",
    "Contender",
    "Run",
    "builders",
    "our_condition",
    "our_evaluation",
]

PYTORCH, EXPORTED, OPENVINO = "PyTorch float32", "exported as it is, ORT", "exported as it is, OpenVINO"
FLOAT32, INT8 = "ours float32", "ours INT8"

Feeds = Mapping[str, np.ndarray]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """What every way is made from.

    Attributes:
        subject: token2wav, as built under ``models/``.
        threads: of each session, as ``params.yaml`` says; 0: ONNX Runtime's choice.
        cores: the same for those that want a number.
        folder: for graphs that are made on the way.
    """

    subject: Subject
    threads: int
    cores: int
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What the graphs were exported with."""
        return artifact.read_json(self.subject.companions / SETTINGS)

    def open(self, kind: str) -> Token2Wav:
        """Open our graphs: ``FLOAT`` or ``QUANTIZED``."""
        return open_graphs(self.subject.of_kind(kind), self.subject.companions, self.threads)

    @property
    def time(self) -> float:
        """When the evaluation that is compared takes place: all 36 cost the same, and golden cases hold this one."""
        return float(variants(self.settings["variants"])[REFERENCE].times()[EVALUATIONS[-1]])


@dataclass(frozen=True)
class Contender:
    """One way to run token2wav.

    Attributes:
        name: as the table shows it.
        nbytes: of its weights on disk.
        evaluation: makes ready for an utterance (``codes`` [1, codes], ``code_lens``, ``cond``, ``ref_mel``,
            ``noise``); returns what finds a velocity, with guidance, [1, 2 * codes, 80].
        vocoder: takes mel frames [frames, 80] and the range to be spoken; returns what gives its waveform. This
            project's run-time hears the frames around the range; the others run on the range alone, as they would on a
            whole utterance.
        once: of an utterance, returns what is computed once, before all evaluations.
        spins: see ``benchmarks.measure.Variant``.
    """

    name: str
    nbytes: int
    evaluation: Callable[[Feeds], Run]
    vocoder: Callable[[np.ndarray, int, int], Run]
    once: Callable[[Feeds], Run] = lambda fed: lambda: None
    spins: float = 0.0


def builders(bench: Bench) -> dict[str, Callable[[], Contender]]:
    """Return what makes each way, by name: PyTorch first, then its exported graphs, then ours.

    The exported graphs must lie in the bench's folder.
    """
    made = {PYTORCH: partial(_pytorch, bench), EXPORTED: partial(_exported, bench)}
    if openvino_installed():
        made[OPENVINO] = partial(_openvino, bench)
    return {**made, FLOAT32: partial(_ours, bench, FLOAT32, FLOAT), INT8: partial(_ours, bench, INT8, QUANTIZED)}


def _pytorch(bench: Bench) -> Contender:
    import torch

    model = original(bench.subject.name, bench.cores)
    dit, bigvgan = (getattr(model, name.rpartition(".")[2]) for name in (DIT, BIGVGAN))

    def run(module: Any, *args: Any, **named: Any) -> np.ndarray:
        with torch.inference_mode():
            return module(*args, **named).numpy()

    def run_dit(inputs: Feeds) -> np.ndarray:
        return run(dit, **{name: torch.from_numpy(array) for name, array in inputs.items()})

    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    return _whole(bench, PYTORCH, nbytes, run_dit, lambda mel: run(bigvgan, torch.from_numpy(mel)), PYTORCH_SPINS)


def _exported(bench: Bench) -> Contender:
    """With ONNX Runtime's own settings, but that its threads do not spin into the runs of the others."""
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
    """Return a way whose parts take and give what transformers' modules do."""
    scale, time = bench.settings["guidance_scale"], bench.time

    def evaluation(fed: Feeds) -> Run:
        inputs = dit_inputs(fed, time)
        return lambda: guided(run_dit(inputs), scale)

    def vocoder(mel: np.ndarray, start: int, end: int) -> Run:
        spoken = np.ascontiguousarray(mel[start:end].T[None])
        return lambda: run_vocoder(spoken)

    return Contender(name, nbytes, evaluation, vocoder, spins=spins)


def _ours(bench: Bench, name: str, kind: str) -> Contender:
    model = bench.open(kind)
    return Contender(
        name,
        sum(map(disk_bytes, bench.subject.of_kind(kind).values())),
        lambda fed: our_evaluation(model, fed, bench.time),
        lambda mel, start, end: lambda: model.vocode_piece(mel, start, end),
        lambda fed: lambda: our_condition(model, fed),
    )


def our_condition(model: Token2Wav, fed: Feeds) -> dict[str, np.ndarray]:
    """Return what our run-time computes once an utterance."""
    return model.condition(**{name: fed[name] for name in ("codes", "code_lens", "cond", "ref_mel")})


def our_evaluation(model: Token2Wav, fed: Feeds, time: float) -> Run:
    """Return what finds the velocity of an utterance [1, 2 * codes, 80] at a time."""
    velocity, state = model.velocity(our_condition(model, fed)), model.blocked(fed["noise"])
    row, frames = int(np.searchsorted(model.times, np.float32(time))), fed["noise"].shape[1]
    return lambda: velocity(state, row, True).reshape(1, -1, model.mels)[:, :frames]
