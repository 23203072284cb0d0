"""The sounds of a question, in any of the forms that Python's users have them in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, SHORTEST, embeddings, read_audio, resample_audio

__all__ = ["Audio", "read_sounds"]

Audio = str | os.PathLike[str] | tuple[np.ndarray, int]  # a file, or samples and their rate


def read_sounds(audio: Audio | Sequence[Audio] | None) -> list[np.ndarray]:
    """Return sounds, each [samples] float32, mono, 16 kHz.

    Args:
        audio: A sound, several in order, or none (None, or an empty list). A sound is a path (a file that libsndfile
            reads, or a pipe: see :func:`qwen_omni_onnx.sound.audio.read_audio`), or samples, [samples] floating point
            in -1 to 1, with their rate in Hz.

    Raises:
        UserError: A sound is none of these, cannot be read, or is too short for the encoder to see anything of it.
    """
    if audio is None:
        return []
    if isinstance(audio, np.ndarray):
        raise UserError("audio: samples without a rate; give (samples, rate)")
    if isinstance(audio, Sequence) and not _is_sound(audio):
        return [_read(one, f"audio {number}") for number, one in enumerate(audio, 1)]
    return [_read(audio, "audio")]


def _is_sound(audio: Any) -> bool:
    samples = isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[0], np.ndarray)
    return samples or isinstance(audio, str | os.PathLike)


def _read(audio: Any, what: str) -> np.ndarray:
    if not _is_sound(audio):
        raise UserError(f"{what}: {type(audio).__name__}; give a path, or (samples, rate) with samples in NumPy")
    if isinstance(audio, tuple):
        sound = resample_audio(audio[0], audio[1], what)
    else:
        what = str(audio)
        sound = read_audio(Path(audio))
    if not embeddings(len(sound)):
        raise UserError(f"{what}: {len(sound)} samples at {INPUT_SAMPLE_RATE} Hz; at least {SHORTEST} are needed")
    return sound
