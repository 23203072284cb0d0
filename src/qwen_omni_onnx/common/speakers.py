"""What a voice is: ``cond`` [1, width], a speaker embedding, and ``ref_mel`` [1, frames, mels] of its speech."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["FIELDS", "MAX_FRAMES", "MIN_FRAMES", "NAME", "VOICES", "Widths", "require_voice", "widths_of"]

VOICES = "speakers.safetensors"  # that holds <voice>/<field> of every voice
FIELDS = ("cond", "ref_mel", "bos_token")  # bos_token: the Thinker's token that begins this voice's replies
NAME = re.compile(r"[\w-]{1,64}")
MIN_FRAMES = 5  # the speaker encoder mirrors up to 4 frames at each end, and has to have more than that
MAX_FRAMES = 30_000  # five minutes; the speaker encoder takes them at once, and a voice is known from seconds


@dataclass(frozen=True)
class Widths:
    """Last axis of ``cond`` and of ``ref_mel``."""

    cond: int
    ref_mel: int


def widths_of(contract: GraphContract) -> Widths:
    """Return what a graph that takes voices wants them to be."""
    last = {port.name: port.shape[-1] for port in contract.inputs}
    return Widths(int(last["cond"]), int(last["ref_mel"]))


def require_voice(where: str, cond: np.ndarray, ref_mel: np.ndarray, widths: Widths | None = None) -> None:
    """Look at dtype, shape and every value of a voice.

    Args:
        where: Where it comes from, for messages.
        cond: Speaker embedding, [1, width] float32.
        ref_mel: Speaker's reference, [1, frames, mels] float32.
        widths: What width and mels must be; None allows any.

    Raises:
        UserError: An array is not as it must be.
    """
    width, mels = (widths.cond, widths.ref_mel) if widths else ("width", "mels")
    for name, array, axes in (("cond", cond, (1, width)), ("ref_mel", ref_mel, (1, "frames", mels))):
        sized = array.ndim == len(axes) and all(
            size == axis or (isinstance(axis, str) and size > 0) for size, axis in zip(array.shape, axes, strict=True)
        )
        if not sized or array.dtype != np.float32:
            wanted = ", ".join(map(str, axes))
            raise UserError(f"{where}: {name} is {array.dtype} {list(array.shape)}; it must be float32 [{wanted}]")
        if not np.isfinite(array).all():
            raise UserError(f"{where}: {name} holds NaN or infinity; this voice cannot be used")
    if not MIN_FRAMES <= ref_mel.shape[1] <= MAX_FRAMES:
        allowed = f"at least {MIN_FRAMES}, and at most {MAX_FRAMES}"
        raise UserError(f"{where}: ref_mel has {ref_mel.shape[1]} frames; give {allowed}")
