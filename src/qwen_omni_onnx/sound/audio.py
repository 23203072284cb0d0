"""Speech as the graphs take it: mono, 16 kHz, float32."""

from __future__ import annotations

import mmap
import re
import warnings
from dataclasses import dataclass
from io import SEEK_CUR, FileIO
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.input_warning import InputWarning
from qwen_omni_onnx.sound.header import SoundLength, read_length
from qwen_omni_onnx.sound.input import open_sound
from qwen_omni_onnx.sound.levels import Levels

__all__ = [
    "HOP",
    "INPUT_SAMPLE_RATE",
    "SHORTEST",
    "clips",
    "embeddings",
    "read_audio",
    "require_audio",
    "require_rate",
    "require_samples",
    "resample_audio",
]

INPUT_SAMPLE_RATE = 16_000
HOP = 160  # samples a mel frame
SHORTEST = 2 * HOP + 1  # samples that the encoder has an embedding for

_SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")
_BLOCK = 1 << 17  # values; a damaged header may promise more than fits in memory
_HIGHEST_RATE = 10_000_000  # Hz
_LONGEST = 3 * 3600  # seconds: 0.7 GB of samples at 16 kHz, where a prompt has places for 20 minutes
_MOST_SAMPLES = 1 << 29  # of a file at its own rate: three hours at 48 kHz
_LOWEST_RATE = 1_000  # Hz; below, a header is damaged, and resampling would make gigabytes of a small file
# Files of these kinds may be strung together; this is how the next one begins.
_BEGINS = {"OGG": re.compile(rb"OggS"), "MP3": re.compile(rb"\A(ID3|\xff[\xe2-\xff])")}
_UNKNOWN = (1 << 63) - 1  # frames, to libsndfile: a FLAC that was written to a pipe does not say how many it has


def read_audio(path: Path) -> np.ndarray:
    """Return the sound of a file or a pipe, [samples] float32, its channels averaged and resampled to 16 kHz.

    A file that was cut short is refused where its header tells a length (FLAC, WAV, AIFF, most MP3). Other ones, Ogg
    among them, may read as a shorter clip. What a recorder left that was killed is read whole
    (:mod:`qwen_omni_onnx.sound.header`). Where channels cancel out in their mean, the loudest one is read alone;
    integers that were written as floating-point numbers are divided by their full scale
    (:class:`qwen_omni_onnx.sound.levels.Levels`).

    Warns:
        InputWarning: The sound is silent, or one of these has been done.

    Raises:
        UserError: The file is missing, not readable as sound, cut short, shorter than a mel frame, hours long, or not
            finite; it is no file and no pipe.
    """
    import soxr

    audio, rate, unusual = _mono(path)
    finite = bool(np.isfinite(audio).all())
    if rate != INPUT_SAMPLE_RATE and finite:  # resampling would smear one bad sample over its neighbours
        audio = soxr.resample(audio, rate, INPUT_SAMPLE_RATE, quality="VHQ")
    audio = require_audio(audio, INPUT_SAMPLE_RATE, str(path))
    for what in unusual:
        warnings.warn(InputWarning(f"{path}: {what}"), stacklevel=2)
    return audio


def resample_audio(audio: np.ndarray, rate: int, what: str) -> np.ndarray:
    """Return ``audio`` [samples] as contiguous float32 at 16 kHz, or refuse it.

    Args:
        audio: Samples, [samples] floating point in -1 to 1.
        rate: Their rate in Hz.
        what: Name of the sound, for messages.

    Raises:
        UserError: The rate is no number of Hz from 1,000 on; or as :func:`require_audio`.
    """
    import soxr

    require_rate(rate, what)
    _require_samples(audio, what)
    if rate != INPUT_SAMPLE_RATE and audio.size:
        audio = soxr.resample(_finite(audio, what), rate, INPUT_SAMPLE_RATE, quality="VHQ")
    return require_audio(audio, INPUT_SAMPLE_RATE, what)


def require_rate(rate: float, what: str) -> None:
    """Refuse a rate that no sound was recorded with.

    Raises:
        UserError: It is no number of Hz from 1,000 on.
    """
    if not isinstance(rate, int | float | np.integer | np.floating) or not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise UserError(f"{what}: a sample rate of {rate!r}; give the Hz that it was recorded with")


def require_samples(audio: np.ndarray, what: str) -> np.ndarray:
    """Return samples [samples], none or more, as contiguous float32, or refuse them.

    Raises:
        UserError: They are not one-dimensional, not floating-point, or not finite.
    """
    _require_samples(audio, what)
    return _finite(audio, what) if audio.size else audio.astype(np.float32)


def require_audio(audio: np.ndarray, rate: int, what: str) -> np.ndarray:
    """Return ``audio`` [samples] as contiguous float32, or refuse it.

    Args:
        audio: Samples, [samples] floating point in -1 to 1.
        rate: Their rate in Hz.
        what: Name of the sound, for messages.

    Raises:
        UserError: The sound is not one-dimensional, not at 16 kHz, not floating-point, shorter than a mel frame, or not
            finite.
    """
    if rate != INPUT_SAMPLE_RATE:
        advice = "resample it (qwen_omni_onnx.sound.audio.read_audio does)"
        raise UserError(f"{what}: {rate} Hz; {INPUT_SAMPLE_RATE} Hz is needed: {advice}")
    _require_samples(audio, what)
    if not audio.size:
        raise UserError(f"{what}: empty; at least {HOP} samples at {INPUT_SAMPLE_RATE} Hz are needed")
    if audio.size < HOP:
        raise UserError(
            f"{what}: {audio.size} samples at {INPUT_SAMPLE_RATE} Hz; at least {HOP}, one mel frame, are needed"
        )
    return _finite(audio, what)


def _require_samples(audio: np.ndarray, what: str) -> None:
    if audio.ndim != 1:
        raise UserError(f"{what}: shape {list(audio.shape)}; [samples] is needed: average the channels of one clip")
    if np.issubdtype(audio.dtype, np.integer):
        raise UserError(f"{what}: {audio.dtype} samples; floating-point ones are needed: divide 16-bit ones by 32768")
    if not np.issubdtype(audio.dtype, np.floating):
        raise UserError(f"{what}: {audio.dtype} samples; floating-point ones between -1 and 1 are needed")


def _finite(audio: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
        audio = np.ascontiguousarray(audio, np.float32)
    finite = np.isfinite(audio)
    if not finite.all():
        index = int(finite.argmin())
        raise UserError(f"{what}: sample {index} is {audio[index]}; record or decode it again, or replace such samples")
    return audio


def embeddings(samples: int) -> int:
    """Return how many embeddings the encoder gives for so many samples: 25 a second."""
    frames = -(-samples // HOP)
    return ((frames - 1) // 2 + 1) // 2


def clips(folder: Path) -> list[Path]:
    """Return a folder's audio files, sorted by name.

    Raises:
        UserError: There is no such folder, or no audio file in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{folder}: no {', '.join(_SUFFIXES)} file in it")
    return found


@dataclass(frozen=True)
class _Decoded:
    """What libsndfile makes of a file.

    Attributes:
        audio: Samples, [samples] float32: one channel, or the mean of all.
        rate: Samples a second.
        levels: Of all channels.
        form: Name of the format.
        end: Where libsndfile has stopped to read.
    """

    audio: np.ndarray
    rate: int
    levels: Levels
    form: str
    end: int


def _mono(path: Path) -> tuple[np.ndarray, int, list[str]]:
    """Return a file's sound, [samples] float32 at the file's rate, that rate, and what is unusual about it."""
    with open_sound(path) as file:
        length = read_length(file)
        if length is not None and length.is_cut:
            there = f"{length.present:,} of {length.promised:,} bytes of sound are there"
            raise UserError(f"{path}: damaged or cut short, {there}; fetch it again")
        source = file if length is None or length.is_right else length.corrected(file)
        decoded = _decoded(path, source)
        unusual = _unusual(length, decoded.levels)
        if _goes_on(file, decoded):
            unusual.insert(0, "holds several sounds one after another; the first one is read")
        if decoded.levels.cancels:
            decoded = _decoded(path, source, decoded.levels.loudest)
    audio, scale = decoded.audio, decoded.levels.full_scale
    if scale != 1:
        audio /= np.float32(scale)
    return audio, decoded.rate, unusual


def _decoded(path: Path, source: FileIO | mmap.mmap, channel: int | None = None) -> _Decoded:
    """Return the sound of an open file: of one channel, or the mean of all."""
    import soundfile

    source.seek(0)
    try:
        # Handed over by its number, a file is read without a detour through Python.
        with soundfile.SoundFile(source.fileno() if isinstance(source, FileIO) else source, closefd=False) as file:
            # After each block, soundfile seeks to where it is, which fails at the end of a FLAC of unknown length.
            file.seekable = lambda: False
            if file.samplerate < _LOWEST_RATE:
                raise UserError(f"{path}: a sample rate of {file.samplerate} Hz; its header is damaged")
            longest = min(_LONGEST * file.samplerate, _MOST_SAMPLES)  # samples; kilobytes of FLAC may hold gigabytes
            left, levels = file.frames, Levels(file.channels)
            frames, weights = max(1, _BLOCK // file.channels), np.full(file.channels, 1 / file.channels)
            if channel is not None:
                weights = np.eye(file.channels)[channel]
            blocks, count = [np.zeros(0, np.float32)], 0
            while left and len(read := file.read(min(left, frames), dtype="float32", always_2d=True)):
                block = read.astype(np.float64)
                levels.add(block)
                with np.errstate(invalid="ignore"):  # infinities that cancel become NaN, and are refused as such
                    blocks.append((block @ weights).astype(np.float32))
                left -= len(block)
                count += len(block)
                if count > longest:
                    raise UserError(f"{path}: more than {longest:,} samples, hours of sound; cut it")
            audio = np.concatenate(blocks)
            if left and file.frames != _UNKNOWN:
                raise UserError(f"{path}: damaged or cut short, {len(audio)} samples are left; fetch it again")
            return _Decoded(audio, file.samplerate, levels, file.format, source.seek(0, SEEK_CUR) or 0)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", "") or "no sound that is known"
        raise UserError(f"{path}: cannot be read as sound ({reason})") from None


def _goes_on(file: FileIO, decoded: _Decoded) -> bool:
    """Return whether another sound begins behind the one that libsndfile has read."""
    begins = _BEGINS.get(decoded.form)
    if begins is None:
        return False
    file.seek(decoded.end)
    return begins.search(file.read(_BLOCK)) is not None


def _unusual(length: SoundLength | None, levels: Levels) -> list[str]:
    """Return what a user may not expect of a sound, and how it is read."""
    found = []
    if length is not None and not length.is_right and not length.open_ended:
        counts = f"{length.promised:,} of {length.present:,} bytes of sound"
        found.append(f"its header counts {counts}; all of them are read")
    if levels.full_scale != 1:
        found.append(f"samples up to {levels.peak:g}: integers written as floats; divided by {levels.full_scale:g}")
    if levels.is_beyond:
        found.append(f"samples up to {levels.peak:g}, where 1 is full scale; read as they are")
    if levels.cancels:
        found.append(f"its channels cancel out in their mean; channel {levels.loudest + 1} is read alone")
    if levels.is_silent:
        found.append("silent; nothing in it is above the smallest step of 16 bits")
    return found
