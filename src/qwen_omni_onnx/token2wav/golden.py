"""What calibrates the graphs, and what checks them: the stages of the pipeline call these, and so does ``verify``.

A golden case holds codes, speaker and noise, and what PyTorch gave for them at every step of the way: the velocity of
single evaluations, the mel frames after all of them, and the waveform.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.sampler import REFERENCE, solve
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE, SETTINGS, Token2Wav, voice_noise
from qwen_omni_onnx.token2wav.velocity import without_past
from qwen_omni_onnx.voices import read_voices

__all__ = [
    "CHECKS",
    "EVALUATIONS",
    "FINER",
    "LOGITS",
    "REFERENCE",
    "SEQUENCES",
    "WAVEFORMS",
    "checks",
    "complete",
    "duration",
    "feeds",
    "mel_of",
    "open_graphs",
    "waveform_of",
    "yardstick",
]

CHECKS = ("evaluation", "mel", "vocoder", "waveform")
LOGITS = ()
WAVEFORMS = ("vocoder", "waveform")
SEQUENCES = ()
EVALUATIONS = (0, 18)  # of the reference's 36, those that golden cases hold
FINER = 2  # times as many intervals as the reference's, for a solution that variants are compared with, too
_FED_EVERY = 5  # evaluations: the fifth, tenth, ... calibrate
Ports = Mapping[str, np.ndarray]


def open_graphs(graphs: Mapping[str, Path], folder: Path, threads: int) -> Token2Wav:
    """Return the run-time of some graph files; ``folder`` holds what was exported beside the float32 ones."""
    return Token2Wav(graphs, artifact.read_json(folder / SETTINGS), threads)


def complete(fed: Ports, folder: Path, contract: GraphContract, number: int) -> dict[str, np.ndarray]:
    """Add speaker and noise to codes and their lengths: what depends on nothing but the case's number.

    Args:
        fed: Inputs ``codes`` [batch, codes] and ``code_lens`` [batch].
        folder: Folder that holds the voices; they take turns from case to case.
        contract: Contract of the component.
        number: Number of the case.
    """
    voices = read_voices(folder / VOICES)
    voice, batch = voices[sorted(voices)[number % len(voices)]], len(fed["codes"])
    noise = next(port for port in contract.inputs if port.name == "noise")
    drawn = voice_noise(number).standard_normal(noise.sized(contract.sizes(*fed["codes"].shape)), np.float32)
    speaker = {port: np.repeat(getattr(voice, port), batch, 0) for port in ("cond", "ref_mel")}
    return {**fed, **speaker, "noise": drawn}


def checks(model: Token2Wav, ports: Ports) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield ``(check, what PyTorch gave, what the graphs give)`` for a golden case, for each of ``CHECKS``."""
    fed = {name: ports[name] for name in ("codes", "code_lens", "cond", "ref_mel")}
    lens = ports["code_lens"] * model.repeats
    velocity = model.velocity(model.condition(**fed))
    blocked = model.blocked(ports["noise"])
    rows = np.searchsorted(model.times, model.variants[REFERENCE].times()[list(EVALUATIONS)])
    found = np.stack([velocity(blocked, int(row)) for row in rows])
    found = found.reshape(*found.shape[:2], -1, model.mels)[:, :, : ports["noise"].shape[1]]
    yield "evaluation", ports["velocity"], np.where(_inside(lens, found.shape[2])[..., None], found, np.float32(0))
    mel = mel_of(model, ports)
    yield "mel", ports["mel"], mel
    yield "vocoder", ports["waveform"], waveform_of(model, ports, ports["mel"])
    yield "waveform", ports["waveform"], waveform_of(model, ports, mel)


def yardstick(ports: Ports, given: Ports) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield ``(check, what PyTorch gave in float32, what it gave in bfloat16)``: of the DiT.

    A frame of mel is a token; a waveform has none, and is judged by absolute limits.
    """
    yield "evaluation", ports["velocity"], given["velocity"]
    yield "mel", ports["mel"], given["mel"]


def feeds(model: Token2Wav, ports: Ports) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Yield ``(graph, name, inputs)`` of what the graphs see while an utterance is spoken, for calibration."""
    fed = {name: ports[name] for name in ("codes", "code_lens", "cond", "ref_mel")}
    conditioned = model.condition(**fed)
    velocity, first = model.velocity(conditioned), without_past(conditioned, model.back)
    seen: list[tuple[str, dict[str, np.ndarray]]] = []
    count = 0

    def watch(mel: np.ndarray, row: int) -> np.ndarray:
        nonlocal count
        if count % _FED_EVERY == 0:
            seen.append((f"evaluation{count}", {"mel": mel, **conditioned, **first, "evaluation": np.array(row)}))
        count += 1
        return velocity(mel, row)

    state = solve(watch, model.blocked(ports["noise"]), model.variants[REFERENCE], model.times)
    for name, inputs in seen:
        yield "dit_step", name, inputs
    mel = state.reshape(len(state), -1, model.mels)[:, : ports["noise"].shape[1]]
    yield "bigvgan", "mel", {"mel": np.ascontiguousarray(mel.transpose(0, 2, 1))}


def mel_of(model: Token2Wav, ports: Ports, variant: str = REFERENCE) -> np.ndarray:
    """Return the mel frames of a golden case by one variant, [batch, frames, 80]: what variants differ in."""
    codes, lens, cond, reference, noise = (ports[name] for name in ("codes", "code_lens", "cond", "ref_mel", "noise"))
    return model.mel(codes, lens, cond, reference, noise, variant)


def waveform_of(model: Token2Wav, ports: Ports, mel: np.ndarray) -> np.ndarray:
    """Return the waveform [batch, samples] of a golden case's mel frames, row by row, zero beyond each row's length."""
    lens = ports["code_lens"] * model.repeats
    rows = np.zeros((len(mel), mel.shape[1] * model.hop), np.float32)
    for row, frames, length in zip(rows, mel, lens, strict=True):
        row[: length * model.hop] = model.vocode(frames[:length])
    return rows


def duration(model: Token2Wav, ports: Ports) -> float:
    """Seconds of speech in a golden case, all rows together."""
    return float(ports["code_lens"].sum()) * model.repeats * model.hop / OUTPUT_SAMPLE_RATE


def _inside(lens: np.ndarray, frames: int) -> np.ndarray:
    return np.arange(frames) < lens[:, None]
