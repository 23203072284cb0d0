"""The graphs that a user gets who exports transformers' token2wav as it is: ``python -m benchmarks.token2wav.naive``.

In a process of its own, because an export leaves gigabytes behind. The DiT attends over the whole clip and masks most
of it: time and memory are quadratic in the length.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from components.token2wav import BIGVGAN, COMPONENT, DIT
from qwen_omni_onnx.common.errors import run_command

__all__ = ["DIT_GRAPH", "VOCODER_GRAPH", "dit_inputs", "export", "guided"]

DIT_GRAPH, VOCODER_GRAPH = "dit.onnx", "bigvgan.onnx"
_OPSET = 20
_CODES, _REFERENCE_FRAMES, _FRAMES = 25, 300, 50  # of the inputs that are traced
_LONGEST = 32_768  # mel frames
_SHORTEST_REFERENCE = 10  # mel frames of the speaker: its encoder mirrors some at each end


def dit_inputs(fed: Mapping[str, np.ndarray], time: float) -> dict[str, np.ndarray]:
    """Return what transformers' DiT takes at one evaluation.

    Args:
        fed: ``codes`` [1, codes], ``cond`` [1, 192], ``ref_mel`` [1, frames, 80] and ``noise`` [1, 2 * codes, 80].
        time: of the evaluation, 0 to 1.
    """
    return {
        "hidden_states": fed["noise"],
        "condition_vector": fed["ref_mel"],
        "speaker_embedding": np.repeat(fed["cond"][:, None], fed["noise"].shape[1], axis=1),
        "quantized_code": fed["codes"],
        "time_step": np.array(time, np.float32),
    }


def guided(both: np.ndarray, scale: float) -> np.ndarray:
    """Return the velocity [1, frames, 80] of the DiT's two rows, with classifier-free guidance."""
    conditioned, unconditioned = np.split(both, 2)
    return conditioned + (conditioned - unconditioned) * np.float32(scale)


def export(folder: Path) -> None:
    """Write both graphs to a folder, from ``models/source``, as the documentation of ``torch.onnx.export`` has it."""
    import torch
    from torch.export import Dim

    from benchmarks.frameworks import original

    model = original(COMPONENT.name, cores=1)
    dit, bigvgan = (getattr(model, name.rpartition(".")[2]) for name in (DIT, BIGVGAN))
    mels = dit.mel_dim
    made_up = {
        "codes": np.zeros((1, _CODES), np.int64),
        "cond": np.zeros((1, dit.config.enc_emb_dim), np.float32),
        "ref_mel": np.zeros((1, _REFERENCE_FRAMES, mels), np.float32),
        "noise": np.zeros((1, dit.repeats * _CODES, mels), np.float32),
    }
    codes = Dim("codes", min=2, max=_LONGEST // dit.repeats)
    heard = Dim("ref_frames", min=_SHORTEST_REFERENCE, max=_LONGEST)
    frames = {1: dit.repeats * codes}
    sizes: dict[str, dict[int, Any]] = {
        "hidden_states": frames,
        "condition_vector": {1: heard},
        "speaker_embedding": frames,
        "quantized_code": {1: codes},
        "time_step": {},
    }
    inputs = {name: torch.from_numpy(array) for name, array in dit_inputs(made_up, 0.5).items()}
    program = torch.onnx.export(dit, kwargs=inputs, dynamo=True, opset_version=_OPSET, dynamic_shapes=sizes)
    program.save(folder / DIT_GRAPH, external_data=True)
    mel = torch.zeros(1, mels, _FRAMES)
    grows = ({2: Dim("frames", min=4, max=_LONGEST)},)
    program = torch.onnx.export(bigvgan, (mel,), dynamo=True, opset_version=_OPSET, dynamic_shapes=grows)
    program.save(folder / VOCODER_GRAPH, external_data=True)


if __name__ == "__main__":
    run_command(lambda: export(Path(sys.argv[1])))
