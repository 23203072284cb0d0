"""Speech as the graphs take it: mono, 16 kHz, float32."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from omni.errors import Problem

__all__ = ["HOP", "SAMPLE_RATE", "SHORTEST", "clips", "embeddings", "read_audio", "require_audio"]

SAMPLE_RATE = 16_000
HOP = 160  # samples a mel frame
SHORTEST = 2 * HOP + 1  # samples that the encoder has an embedding for

_SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")
_BLOCK = 1 << 16  # samples; a damaged header may promise more than fits in memory
_LOWEST_RATE = 1_000  # Hz; below, a header is damaged, and resampling would make gigabytes of a small file
_OPEN_ENDED = 0x7FFF_0000  # bytes; a WAV written to a pipe claims this much or more, and is whole all the same


def read_audio(path: Path) -> np.ndarray:
    """Return a file's sound, [samples] float32, its channels averaged and resampled to 16 kHz.

    A file that was cut short is refused where its header tells a length (FLAC, WAV, most MP3). Other ones, Ogg among
    them, may read as a shorter clip.

    Raises:
        Problem: the file is missing, not readable as sound, cut short, shorter than a mel frame, or not finite.
    """
    import soxr

    if not path.exists():
        raise Problem(f"{path}: no such file")
    if path.is_dir():
        raise Problem(f"{path}: is a folder; give an audio file in it")
    audio, rate = _mono(path)
    if rate != SAMPLE_RATE and np.isfinite(audio).all():  # resampling would smear one bad sample over its neighbours
        audio = soxr.resample(audio, rate, SAMPLE_RATE, quality="VHQ")
    return require_audio(audio, SAMPLE_RATE, str(path))


def require_audio(audio: np.ndarray, rate: int, what: str) -> np.ndarray:
    """Return ``audio`` [samples] as contiguous float32, or refuse it; ``rate`` in Hz, ``what`` names it in messages.

    Raises:
        Problem: it is not one-dimensional, not at 16 kHz, not floating-point, shorter than a mel frame, or not finite.
    """
    if rate != SAMPLE_RATE:
        raise Problem(f"{what}: {rate} Hz; {SAMPLE_RATE} Hz is needed: resample it (omni.audio.read_audio does)")
    if audio.ndim != 1:
        raise Problem(f"{what}: shape {list(audio.shape)}; [samples] is needed: average the channels of one clip")
    if np.issubdtype(audio.dtype, np.integer):
        raise Problem(f"{what}: {audio.dtype} samples; floating-point ones are needed: divide 16-bit ones by 32768")
    if not np.issubdtype(audio.dtype, np.floating):
        raise Problem(f"{what}: {audio.dtype} samples; floating-point ones between -1 and 1 are needed")
    if not audio.size:
        raise Problem(f"{what}: empty; at least {HOP} samples at {SAMPLE_RATE} Hz are needed")
    if audio.size < HOP:
        raise Problem(f"{what}: {audio.size} samples at {SAMPLE_RATE} Hz; at least {HOP}, one mel frame, are needed")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
        audio = np.ascontiguousarray(audio, np.float32)
    finite = np.isfinite(audio)
    if not finite.all():
        index = int(finite.argmin())
        raise Problem(f"{what}: sample {index} is {audio[index]}; record or decode it again, or replace such samples")
    return audio


def embeddings(samples: int) -> int:
    """Return how many embeddings the encoder gives for so many samples: 25 a second."""
    frames = -(-samples // HOP)
    return ((frames - 1) // 2 + 1) // 2


def clips(folder: Path) -> list[Path]:
    """Return a folder's audio files, sorted by name.

    Raises:
        Problem: there is no such folder, or no audio file in it.
    """
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise Problem(f"{folder}: no {', '.join(_SUFFIXES)} file in it")
    return found


def _mono(path: Path) -> tuple[np.ndarray, int]:
    """Return a file's sound, [samples] float32 at the file's rate, and that rate."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            promised, rate, log = file.frames, file.samplerate, file.extra_info
            blocks = [np.zeros(0, np.float32)]
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                with np.errstate(invalid="ignore"):  # infinities that cancel become NaN, and are refused as such
                    blocks.append(block.mean(1, dtype=np.float64).astype(np.float32))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: .raw, which has no header
        raise Problem(f"{path}: cannot be read as sound ({getattr(error, 'error_string', error)})") from None
    audio = np.concatenate(blocks)
    # libsndfile counts what is left of a cut WAV, and tells only its log what the header promised.
    data = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    cut = data is not None and int(data[2]) < int(data[1]) < _OPEN_ENDED
    if cut or len(audio) < promised:
        raise Problem(f"{path}: damaged or cut short, {len(audio)} samples are left; fetch it again")
    if rate < _LOWEST_RATE:
        raise Problem(f"{path}: a sample rate of {rate} Hz; its header is damaged")
    return audio, rate
