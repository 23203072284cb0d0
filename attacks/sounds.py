"""Attempts by way of sounds: headers that lie, and sounds without end."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import soundfile

from attacks.attempt import Attempt, Target
from qwen_omni_onnx.sound.audio import read_audio

__all__ = ["ATTEMPTS", "read_sound"]

_RATE = 1_000  # Hz; the lowest: three hours, the longest sound, are few samples
_SPEECH_RATE = 16_000


def read_sound(path: str) -> None:
    """Read a sound as ``speak`` does.

    Raises:
        UserError: It cannot be read.
    """
    read_audio(Path(path))


def _lying_headers(target: Target) -> list[str]:
    """Let headers say other lengths, rates and channels than there are."""
    gave_way = []
    whole = _wav(np.full(3_200, 1_000, "<i2"))
    files = {f"wav, {length:#x} bytes": _wav_of_length(whole, length) for length in (0, 1, 2**31, 2**32 - 1)}
    for at, form, values in (
        (22, "<H", (0, 0xFFFF)),  # channels
        (24, "<I", (0, 1, 2**32 - 1)),  # rate
        (32, "<H", (0, 0xFFFF)),  # bytes of a frame
        (34, "<H", (0, 1, 0xFFFF)),  # bits
        (16, "<I", (0, 2**32 - 1)),  # bytes of the format
    ):
        for value in values:
            files[f"wav, {value:#x} at {at}"] = (
                whole[:at] + struct.pack(form, value) + whole[at + struct.calcsize(form) :]
            )
    flac = target.place / "whole.flac"
    soundfile.write(flac, np.zeros(3_200, np.int16), _SPEECH_RATE)
    content = bytearray(flac.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    files["flac, 2^36 - 1 samples"] = bytes(content)
    files["rf64, 2^63 bytes"] = b"RF64" + b"\xff" * 4 + b"WAVEds64" + struct.pack("<IQQQI", 28, 2**63, 2**63, 2**62, 0)
    files["no sound"] = b"RIFF"
    for name, stored in files.items():
        path = target.place / "sound"
        path.write_bytes(stored)
        outcome = target.try_work(read_sound, str(path))
        if outcome.kind == "failed":
            gave_way.append(f"{name}: {outcome.said}")
    return gave_way


def _long_sounds(target: Target) -> list[str]:
    """Let small files hold sounds that are long, or that resampling makes large."""
    gave_way, path = [], target.place / "long.wav"
    path.write_bytes(_wav_of_length(_wav(np.zeros(16, "<i2"), _RATE), 2**32 - 1))
    with path.open("r+b") as file:
        file.truncate(44 + 2 * 2**31)  # 2^31 samples in a sparse file of a few bytes
    flac = target.place / "long.flac"
    with soundfile.SoundFile(flac, "w", _RATE, 1, "PCM_16") as file:
        for _ in range(100):
            file.write(np.zeros(120_000, np.int16))  # 12 million samples, which would be 190 million at 16 kHz
    for place in (path, flac):
        outcome = target.try_work(read_sound, str(place))
        if outcome.kind != "refused":
            gave_way.append(f"{place.name}: {outcome.kind}: {outcome.said}")
    return gave_way


def _wav(samples: np.ndarray, rate: int = _SPEECH_RATE) -> bytes:
    data = samples.tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    )


def _wav_of_length(content: bytes, length: int) -> bytes:
    return content[:40] + struct.pack("<I", length) + content[44:]


ATTEMPTS = (
    Attempt(
        "lying-headers",
        "WAV, RF64 and FLAC headers that say other lengths, rates, channels and sizes than there are",
        "refused in one line, or what is there is read, and said to be",
        _lying_headers,
    ),
    Attempt(
        "long-sounds",
        "2^31 samples in a sparse file; 20 kB of FLAC at 1,000 Hz that would be 0.8 GB at 16 kHz",
        "refused after three hours of sound, before they are resampled",
        _long_sounds,
    ),
)
