"""Voices that token2wav speaks with: those that come with the model, and a user's own from two arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qwen_omni_onnx.arrays import read_array
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import FIELDS, NAME, Widths, require_voice

__all__ = ["Voice", "pick", "read_voice", "read_voices"]


@dataclass(frozen=True, eq=False)
class Voice:
    """A speaker.

    Attributes:
        name: Name of the voice, or of the folder that it came from.
        cond: Speaker embedding, [1, width] float32.
        ref_mel: Logarithm of the mel spectrogram of a recording, [1, frames, mels] float32, 100 frames a second.
        bos_token: The Thinker's token that begins this voice's replies; None for a user's own.
    """

    name: str
    cond: np.ndarray
    ref_mel: np.ndarray
    bos_token: int | None


def read_voices(path: Path) -> dict[str, Voice]:
    """Return the voices in a ``speakers.safetensors``, by name.

    Raises:
        UserError: The file is missing, cannot be read, or does not hold whole voices and nothing else.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; download the artifact again, or pull and export the component") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); build the artifact again") from None
    names = sorted({name.partition("/")[0] for name in tensors})
    expected = {f"{name}/{field}" for name in names for field in FIELDS}
    odd = sorted(expected ^ set(tensors)) + [name for name in names if not NAME.fullmatch(name)]
    if odd or not names:
        fault = f"{odd[0]!r} is missing or no part of a voice" if odd else "no voice in it"
        raise UserError(f"{path}: {fault}; build the artifact again")
    return {name: _voice(path, name, tensors) for name in names}


def read_voice(folder: Path, widths: Widths) -> Voice:
    """Return a user's own voice from a folder.

    Args:
        folder: Folder that holds ``cond.npy``, [width] or [1, width], and ``ref_mel.npy``, [frames, mels] or [1,
            frames, mels].
        widths: Widths that the model wants.

    Raises:
        UserError: An array is missing, no plain array of floats, of another shape, holds NaN or infinity, or is too
            short.
    """
    cond, ref_mel = (_array(folder / f"{name}.npy", axes) for name, axes in (("cond", 2), ("ref_mel", 3)))
    require_voice(str(folder), cond, ref_mel, widths)
    return Voice(folder.name, cond, ref_mel, None)


def pick(voices: Mapping[str, Voice], name_or_folder: str, *, own: bool = True) -> Voice:
    """Return one of the voices by its name, or a user's own from a folder; a name comes first.

    Args:
        voices: The model's voices.
        name_or_folder: Name of the voice, or the folder.
        own: Whether a user's own will do: token2wav speaks with any, but the Talker only with those that it was trained
            on.

    Raises:
        UserError: There is neither such a voice nor such a folder; or see :func:`read_voice`.
    """
    if name_or_folder in voices:
        return voices[name_or_folder]
    folder, known = Path(name_or_folder), ", ".join(sorted(voices))
    if not name_or_folder or not folder.is_dir():
        others = "; or give a folder with cond.npy and ref_mel.npy" if own else ""
        raise UserError(f"no voice {name_or_folder!r}; there are: {known}{others}")
    if not own:
        raise UserError(f"voice {name_or_folder!r}: the Talker was not trained on it; there are: {known}")
    like = next(iter(voices.values()))
    return read_voice(folder, Widths(like.cond.shape[1], like.ref_mel.shape[2]))


def _voice(path: Path, name: str, tensors: Mapping[str, np.ndarray]) -> Voice:
    cond, ref_mel, bos_token = (tensors[f"{name}/{field}"] for field in FIELDS)
    require_voice(f"{path}: {name}", cond, ref_mel)
    if bos_token.dtype != np.int64 or bos_token.shape != (1,) or bos_token[0] < 0:
        raise UserError(f"{path}: {name}: bos_token is no token's number; build the artifact again")
    return Voice(name, cond, ref_mel, int(bos_token[0]))


def _array(path: Path, axes: int) -> np.ndarray:
    """Read an array of floats; a batch axis is put in front where it is not there."""
    if not path.exists():
        raise UserError(f"{path}: missing; a voice is a folder with cond.npy and ref_mel.npy")
    array = read_array(path)
    if array.dtype.kind != "f":
        raise UserError(f"{path}: {array.dtype}; give floats")
    with np.errstate(over="ignore"):  # what is too large becomes infinity, and is told
        array = array.astype(np.float32)
    return array[np.newaxis] if array.ndim == axes - 1 else array
