"""Speech to a sound file, chunk by chunk: beside its place, looked at, and renamed once it is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE

__all__ = ["require_sound_file", "writing"]

_FORMATS = {".wav": "WAV", ".flac": "FLAC"}
_LAST_FRAMES = 8192  # that are read again: more than a block of a FLAC file


def require_sound_file(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Refuse a place that no sound file is to be written to, before anything is computed.

    Args:
        path: The file to write.
        inputs: Files that the command reads.
        overwrite: Whether what is there may go.

    Raises:
        UserError: Another ending than of a known format; or see :func:`qwen_omni_onnx.common.output.require_writable`.
    """
    _format(path)
    output.require_writable(path, inputs=inputs, overwrite=overwrite)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that adds a chunk [samples] float32, 24 kHz mono; on leaving, the file is in its place.

    If the body raises, or is interrupted, or writes nothing, or the file cannot be read again as it was written, what
    was there before stays.

    Raises:
        UserError: Another ending than of a known format; the disk is full; see
            :func:`qwen_omni_onnx.common.output.writing`.
    """
    import soundfile

    file_format = {"format": _format(path), "subtype": "PCM_16"}
    written = 0
    with output.writing(path) as beside:

        def add(chunk: np.ndarray) -> None:
            nonlocal written
            try:
                file.write(chunk)
            except soundfile.LibsndfileError as error:
                raise _not_whole(path) from error
            written += len(chunk)

        try:
            with soundfile.SoundFile(beside, "w", OUTPUT_SAMPLE_RATE, 1, **file_format) as file:
                yield add
        finally:
            if not written:
                beside.write_bytes(b"")  # a header alone is no sound
        if written and _frames(beside) != written:  # errors of the last block and of closing are not told
            raise _not_whole(path)


def _format(path: Path) -> str:
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path}: the name of a sound file must end in {' or '.join(_FORMATS)}")
    return _FORMATS[path.suffix.lower()]


def _frames(path: Path) -> int:
    """Return how many frames of a sound file can be read: up to the last one, or none."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            file.seek(max(0, file.frames - _LAST_FRAMES))
            return int(file.tell() + len(file.read(_LAST_FRAMES)))
    except soundfile.LibsndfileError:
        return 0


def _not_whole(path: Path) -> UserError:
    return UserError(f"{path}: cannot be written whole; is the disk full? What was there before is as it was")
