"""Speak once and end: what a user's process takes. ``python -m benchmarks.token2wav.spoken ASKED``

ASKED is JSON: ``graphs`` by name, ``folder`` of what was exported beside them, ``codes`` (how many), ``threads``. One
evaluation of the ODE takes the memory of 36.
"""

import json
import sys
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.sampler import REFERENCE
from qwen_omni_onnx.token2wav.runtime import SETTINGS, Token2Wav
from qwen_omni_onnx.voices import read_voices

_ONCE = {"solver": "euler", "intervals": 1, "guidance": "evaluation"}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    folder = Path(asked["folder"])
    graphs = {name: Path(graph) for name, graph in asked["graphs"].items()}
    settings = {**artifact.read_json(folder / SETTINGS), "variants": {REFERENCE: _ONCE}}
    model = Token2Wav(graphs, settings, asked["threads"])
    voice = next(iter(read_voices(folder / VOICES).values()))
    codes = np.random.default_rng(0).integers(model.codes, size=asked["codes"])
    model.speak(codes, voice.cond, voice.ref_mel)
