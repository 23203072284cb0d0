"""Export transformers' token2wav as it is, or speak once, each in a process of its own.

``python -m benchmarks.token2wav.workers export FOLDER`` writes the graphs that a user gets who exports transformers'
modules as they are: an export leaves gigabytes behind in its process. The DiT attends over the whole clip and masks
most of it, so its time and memory are quadratic in the length.

``python -m benchmarks.token2wav.workers speak REQUEST`` takes the memory of a user's process. REQUEST is JSON:
``graphs`` by name, ``folder`` of what was exported beside them, ``codes`` (their number) and ``threads``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import run_command
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.sampler import REFERENCE
from qwen_omni_onnx.token2wav.runtime import SETTINGS, Token2Wav
from qwen_omni_onnx.voices import read_voices

__all__ = ["DIT_GRAPH", "VOCODER_GRAPH", "dit_inputs", "export", "speak"]

DIT_GRAPH, VOCODER_GRAPH = "dit.onnx", "bigvgan.onnx"
_OPSET = 20
_CODES, _REFERENCE_FRAMES, _FRAMES = 25, 300, 50  # lengths of the inputs that are traced
_LONGEST = 32_768  # mel frames
_SHORTEST_REFERENCE = 10  # mel frames of the speaker: its encoder mirrors some at each end
_ONE_EVALUATION = {"solver": "abm2", "intervals": 1}  # takes the memory of 36


def dit_inputs(fed: Mapping[str, np.ndarray], time: float) -> dict[str, np.ndarray]:
    """Return the inputs of transformers' DiT at one evaluation.

    Args:
        fed: ``codes`` [1, codes], ``cond`` [1, 192], ``ref_mel`` [1, frames, 80] and ``noise`` [1, 2 * codes, 80].
        time: Time of the evaluation, 0 to 1.
    """
    return {
        "hidden_states": fed["noise"],
        "condition_vector": fed["ref_mel"],
        "speaker_embedding": np.repeat(fed["cond"][:, None], fed["noise"].shape[1], axis=1),
        "quantized_code": fed["codes"],
        "time_step": np.array(time, np.float32),
    }


def export(folder: Path) -> None:
    """Write both graphs to a folder, from ``models/source``, as the documentation of ``torch.onnx.export`` has it.

    Args:
        folder: Folder of the graphs.
    """
    import torch
    from torch.export import Dim

    from benchmarks.frameworks import original
    from components.token2wav import BIGVGAN, COMPONENT, DIT

    model = original(COMPONENT.name, cores=1)
    dit, bigvgan = (getattr(model, name.rpartition(".")[2]) for name in (DIT, BIGVGAN))
    mels = dit.mel_dim
    traced = {
        "codes": np.zeros((1, _CODES), np.int64),
        "cond": np.zeros((1, dit.config.enc_emb_dim), np.float32),
        "ref_mel": np.zeros((1, _REFERENCE_FRAMES, mels), np.float32),
        "noise": np.zeros((1, dit.repeats * _CODES, mels), np.float32),
    }
    codes = Dim("codes", min=2, max=_LONGEST // dit.repeats)
    ref_frames = Dim("ref_frames", min=_SHORTEST_REFERENCE, max=_LONGEST)
    frames = {1: dit.repeats * codes}
    sizes: dict[str, dict[int, Any]] = {
        "hidden_states": frames,
        "condition_vector": {1: ref_frames},
        "speaker_embedding": frames,
        "quantized_code": {1: codes},
        "time_step": {},
    }
    inputs = {name: torch.from_numpy(array) for name, array in dit_inputs(traced, 0.5).items()}
    program = torch.onnx.export(dit, kwargs=inputs, dynamo=True, opset_version=_OPSET, dynamic_shapes=sizes)
    program.save(folder / DIT_GRAPH, external_data=True)
    mel = torch.zeros(1, mels, _FRAMES)
    mel_sizes = ({2: Dim("frames", min=4, max=_LONGEST)},)
    program = torch.onnx.export(bigvgan, (mel,), dynamo=True, opset_version=_OPSET, dynamic_shapes=mel_sizes)
    program.save(folder / VOCODER_GRAPH, external_data=True)


def speak(request: Mapping[str, Any]) -> None:
    """Speak random codes with the first voice, with one evaluation of the ODE.

    Args:
        request: Keys and values that the module's docstring names.
    """
    folder = Path(request["folder"])
    graphs = {name: Path(graph) for name, graph in request["graphs"].items()}
    settings = {**artifact.read_json(folder / SETTINGS), "variants": {REFERENCE: _ONE_EVALUATION}}
    model = Token2Wav(graphs, settings, request["threads"])
    voice = next(iter(read_voices(folder / VOICES).values()))
    codes = np.random.default_rng(0).integers(model.codes, size=request["codes"])
    model.speak(codes, voice.cond, voice.ref_mel)


_WORKERS: Mapping[str, Callable[[str], None]] = {
    "export": lambda folder: export(Path(folder)),
    "speak": lambda request: speak(json.loads(request)),
}

if __name__ == "__main__":
    run_command(lambda: _WORKERS[sys.argv[1]](sys.argv[2]))
