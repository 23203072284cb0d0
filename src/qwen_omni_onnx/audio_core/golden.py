"""What checks the graph: the stages of the pipeline call these, and so does whoever has a published folder.

A golden case holds sound, speaker and noise, and the codes and the waveform that the separate graphs gave for them in
their run-times: the float32 ones, which are held to PyTorch one by one, and the quantized ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from qwen_omni_onnx.audio_core.runtime import GRAPH, SETTINGS, AudioCore
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE
from qwen_omni_onnx.token2wav.runtime import voice_noise
from qwen_omni_onnx.voices import read_voices

__all__ = ["CHECKS", "LOGITS", "SEQUENCES", "WAVEFORMS", "checks", "complete", "open_graphs", "yardstick"]

CHECKS = ("codes", "waveform")
LOGITS = ()
WAVEFORMS = ("waveform",)
SEQUENCES = ()
_REACH = 2  # blocks of mel frames on each side in which another code is heard
Ports = Mapping[str, np.ndarray]


def open_graphs(graphs: Mapping[str, Path], folder: Path, threads: int) -> AudioCore:
    """Return the run-time of a graph file; ``folder`` holds what was composed beside the float32 one."""
    return AudioCore(graphs[GRAPH], artifact.read_json(folder / SETTINGS), threads)


def complete(fed: Ports, folder: Path, contract: GraphContract, number: int) -> dict[str, np.ndarray]:
    """Add speaker and noise to ``audio`` [1, samples]: what depends on its length and the case's number.

    Args:
        fed: Inputs: the sound.
        folder: Folder that holds the voices; they take turns from case to case.
        contract: Contract of the component.
        number: Number of the case, and seed of the noise.
    """
    voices = read_voices(folder / VOICES)
    voice = voices[sorted(voices)[number % len(voices)]]
    noise = next(port for port in contract.inputs if port.name == "noise")
    drawn = voice_noise(number).standard_normal(noise.sized(contract.sizes(*fed["audio"].shape)), np.float32)
    return {**fed, "cond": voice.cond, "ref_mel": voice.ref_mel, "noise": drawn}


def checks(model: AudioCore, ports: Ports) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield ``(check, what the separate graphs gave, what the graph gives)``, for each of ``CHECKS``.

    Codes are those of the float32 graphs, as rows with a one where the code is: top-1 is then the share of equal ones.
    The waveform is that of the separate graphs of the same kind, where their codes are the same: one that differs,
    as a quantized graph's may on another processor, makes another sound around it.
    """
    audio, cond, ref_mel, noise = (ports[name] for name in ("audio", "cond", "ref_mel", "noise"))
    codes, waveform = model.run(audio[0], INPUT_SAMPLE_RATE, cond, ref_mel, noise)
    yield "codes", _rows(ports["codes"][0], model.codes), _rows(codes, model.codes)
    own = "quantized_" if model.quantized else ""
    same = _same_sound(model, ports[f"{own}codes"][0], codes)
    given = ports[f"{own}waveform"][0]
    yield "waveform", np.where(same, given, np.float32(0))[None], np.where(same, waveform, np.float32(0))[None]


def yardstick(ports: Ports, given: Ports) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield nothing: the separate graphs, which this is compared with, are held to the yardstick one by one."""
    return iter(())


def _rows(codes: np.ndarray, count: int) -> np.ndarray:
    """Return [codes, count] float32: a one in each row."""
    rows = np.zeros((len(codes), count), np.float32)
    rows[np.arange(len(codes)), codes] = 1
    return rows


def _same_sound(model: AudioCore, expected: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return whether no other code is near, for each sample of the waveform: [samples]."""
    frames = np.repeat(expected != codes, model.repeats)
    blocks = np.pad(frames, (0, -len(frames) % model.block)).reshape(-1, model.block).max(1)
    near = np.convolve(blocks, np.ones(2 * _REACH + 1))[_REACH : _REACH + len(blocks)] > 0
    return ~near.repeat(model.block)[: len(frames)].repeat(model.hop)
