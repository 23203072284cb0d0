"""Speech to a sound file, piece by piece: beside its place, and renamed once it is whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from omni.errors import Problem
from speech.token2wav.runtime import SAMPLE_RATE

__all__ = ["require_sound_file", "writing"]

_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def require_sound_file(path: Path) -> None:
    """Refuse a place that no sound file can be written to, before anything is computed.

    Raises:
        Problem: another ending than of a known format, or no folder to write into.
    """
    if path.suffix.lower() not in _FORMATS:
        raise Problem(f"{path}: the name of a sound file must end in {' or '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise Problem(f"{path.parent}: no such folder; make it first")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that adds a piece [samples] float32, 24 kHz mono; on leaving, the file is in its place.

    If the body raises, or is interrupted, or writes nothing, what was there before stays.

    Raises:
        Problem: see :func:`require_sound_file`.
    """
    import soundfile

    require_sound_file(path)
    beside = path.with_name(f".{path.name}.writing")
    how = {"format": _FORMATS[path.suffix.lower()], "subtype": "PCM_16"}
    try:
        with soundfile.SoundFile(beside, "w", SAMPLE_RATE, 1, **how) as file:
            yield file.write
            written = file.frames
        if written:
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
