"""Sounds that are not what they seem: integers in floating point, channels that cancel out, silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from qwen_omni_onnx.common.input_warning import InputWarning
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio

RATE = INPUT_SAMPLE_RATE
SAMPLES = 150_000  # more than one block of reading


def _speech(peak: float = 0.5, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, as loud as asked for."""
    noise = np.random.default_rng(seed).standard_normal(SAMPLES) * np.abs(np.sin(np.arange(SAMPLES) / 3_000))
    return peak * noise / np.abs(noise).max()


def _write(path: Path, *channels: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, np.stack(channels, 1), rate, subtype=subtype)
    return path


def _read(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return the sound, and the warnings without the name of the file."""
    with pytest.warns(InputWarning) as warned:
        audio = read_audio(path)
    return audio, [str(warning.message).removeprefix(f"{path}: ") for warning in warned]


def _assert_not_warned(path: Path, recwarn: pytest.WarningsRecorder) -> np.ndarray:
    audio = read_audio(path)
    assert not [str(warning.message) for warning in recwarn]
    return audio


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("loudness", [1, 0.01, 1.2])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_integers_that_were_written_as_floats_are_divided_by_their_full_scale(
    bits: int, loudness: float, subtype: str, tmp_path: Path
) -> None:
    full = 2.0 ** (bits - 1)
    sound = np.round(_speech(loudness * full))
    audio, told = _read(_write(tmp_path / "a.wav", sound, subtype=subtype))

    assert told == [
        f"samples up to {np.abs(sound).max().astype(np.float32):g}: integers written as floats; divided by {full:g}"
    ]
    np.testing.assert_allclose(audio, sound / full, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_integers_as_floats_are_divided_before_they_are_resampled(rate: int, tmp_path: Path) -> None:
    sound = _speech(20_000)

    audio, _ = _read(_write(tmp_path / "a.wav", sound, rate=rate))

    assert 0.2 < np.abs(audio).max() < 1


@pytest.mark.parametrize("peak", [0.9, 1, 1.5, 8, 99])
def test_sound_above_full_scale_is_left_as_it_is(peak: float, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    audio = _assert_not_warned(_write(tmp_path / "a.wav", _speech(peak)), recwarn)

    np.testing.assert_allclose(audio, _speech(peak), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("peak", [1e3, 1e20])
def test_a_few_wild_samples_do_not_make_the_others_silent(peak: float, tmp_path: Path) -> None:
    sound = _speech()
    sound[[5_000, 90_000]] = peak

    audio, told = _read(_write(tmp_path / "a.wav", sound))

    assert told == [f"samples up to {np.float32(peak):g}, where 1 is full scale; read as they are"]
    np.testing.assert_allclose(np.delete(audio, [5_000, 90_000]), np.delete(sound, [5_000, 90_000]), atol=1e-6)


def test_what_no_integer_holds_is_told_and_left(tmp_path: Path) -> None:
    audio, told = _read(_write(tmp_path / "a.wav", _speech(1e15)))

    assert told == ["samples up to 1e+15, where 1 is full scale; read as they are"]
    assert np.abs(audio).max() > 1e14


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("noise", [0, 0.005])
@pytest.mark.parametrize("constant", [0, 0.2])
def test_of_channels_that_cancel_out_the_loudest_is_read(
    constant: float, noise: float, subtype: str, tmp_path: Path
) -> None:
    """A balanced line that was recorded as stereo; the recorder may add a constant, and each side has its own noise."""
    sound = _speech()
    left = 0.8 * sound + _speech(noise, 1) + constant
    right = -0.85 * sound + _speech(noise, 2) + constant

    audio, told = _read(_write(tmp_path / "a.wav", left, right, subtype=subtype))

    assert told == ["its channels cancel out in their mean; channel 2 is read alone"]
    np.testing.assert_allclose(audio, right, atol=1e-4)


def test_a_whisper_in_32_bits_is_taken_for_one_in_24(tmp_path: Path) -> None:
    """How large the numbers are is all that there is to tell by."""
    _, told = _read(_write(tmp_path / "a.wav", _speech(2.0**31 / 300)))

    assert told == ["samples up to 7.15828e+06: integers written as floats; divided by 8.38861e+06"]


def test_channels_of_integers_as_floats_that_cancel_out_are_told_both(tmp_path: Path) -> None:
    audio, told = _read(_write(tmp_path / "a.wav", _speech(9_000), -_speech(9_000)))

    assert len(told) == 2
    np.testing.assert_allclose(audio, _speech(9_000) / 32_768, atol=1e-6)


@pytest.mark.parametrize(
    "channels",
    [
        [_speech(), _speech()],
        [_speech(), _speech(seed=1)],
        [_speech(), np.zeros(SAMPLES)],
        [_speech(), *[np.zeros(SAMPLES)] * 7],
        [_speech(), -0.5 * _speech()],
        [_speech(seed=seed) for seed in range(6)],
        [_speech(0.001), _speech(0.001, 1) + 0.5],
    ],
    ids=["the same", "unlike", "one silent", "seven silent", "in part", "six", "quiet, and a constant"],
)
def test_channels_that_do_not_cancel_out_are_averaged(
    channels: list[np.ndarray], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    audio = _assert_not_warned(_write(tmp_path / "a.wav", *channels), recwarn)

    np.testing.assert_allclose(audio, np.mean(channels, 0), atol=1e-6)


@pytest.mark.parametrize(
    "channels",
    [
        [np.zeros(SAMPLES)],
        [np.zeros(SAMPLES), np.zeros(SAMPLES)],
        [np.full(SAMPLES, 0.3)],
        [np.full(SAMPLES, 0.3), np.full(SAMPLES, -0.3)],
        [_speech(2e-5)],
    ],
    ids=["zeros", "stereo", "a constant", "constants that cancel out", "below 16 bits"],
)
def test_silence_is_told_and_read(channels: list[np.ndarray], tmp_path: Path) -> None:
    audio, told = _read(_write(tmp_path / "a.wav", *channels))

    assert told == ["silent; nothing in it is above the smallest step of 16 bits"]
    assert len(audio) == SAMPLES


def test_quiet_and_clipped_speech_are_sound(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    _assert_not_warned(_write(tmp_path / "a.wav", _speech(0.001)), recwarn)
    _assert_not_warned(_write(tmp_path / "b.wav", np.clip(_speech(5), -1, 1), subtype="PCM_16"), recwarn)


def test_a_command_prints_a_warning_in_one_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", np.zeros(SAMPLES))
    program = [
        "import warnings, sys; from pathlib import Path; from qwen_omni_onnx.sound.audio import read_audio",
        "from qwen_omni_onnx.common.errors import run_command",
        "def command():",
        "    for _ in range(2): read_audio(Path(sys.argv[1]))",
        "    warnings.warn('of a library')",
        "run_command(command)",
    ]

    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program), path], cwd=ROOT, capture_output=True, text=True, check=True
    )

    told, other, *_ = done.stderr.splitlines()
    assert told == f"warning: {path}: silent; nothing in it is above the smallest step of 16 bits"
    assert other == "<string>:5: UserWarning: of a library"
