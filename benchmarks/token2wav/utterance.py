"""What is spoken: held-out codes of any length, a voice, noise, and mel frames for the vocoder."""

from __future__ import annotations

import numpy as np
from validate.subject import FLOAT

from benchmarks.token2wav.ways import Bench
from omni.inputs import HELD_OUT, feed, read
from qwen_omni_onnx.token2wav.golden import complete
from qwen_omni_onnx.token2wav.runtime import SAMPLE_RATE, Token2Wav

__all__ = ["cheapest", "codes_of", "mel_frames", "utterance"]

_FEWEST_CODES = 2  # that the exported graphs take


def codes_of(bench: Bench, seconds: float) -> int:
    """Return how many codes make so many seconds of speech."""
    settings = bench.settings
    return max(_FEWEST_CODES, round(seconds * SAMPLE_RATE / (settings["repeats"] * settings["samples_per_frame"])))


def utterance(bench: Bench, codes: int) -> dict[str, np.ndarray]:
    """Return one row of so many held-out codes with its length, speaker and noise."""
    subject = bench.subject
    recordings = list(read(subject.name, HELD_OUT).values())
    return complete(feed(subject.contract, recordings, [codes]), subject.companions, subject.contract, 0)


def mel_frames(bench: Bench, frames: int) -> np.ndarray:
    """Return mel frames [frames, 80] as the vocoder meets them: found by our float32 graphs, in the cheapest way."""
    model = bench.open(FLOAT)
    fed = utterance(bench, -(-frames // model.repeats))
    return model.mel(**fed, variant=cheapest(model))[0, :frames]


def cheapest(model: Token2Wav) -> str:
    """Return the name of the variant with the least to compute."""
    return min(model.variants, key=lambda name: model.variants[name].rows)
