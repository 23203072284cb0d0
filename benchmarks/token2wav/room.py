"""Is there memory for it? Some ways need as much as the square of the length.

By estimate and not by trial: a way that fits by itself may not beside the one that it takes turns with, and the kernel
then kills the whole benchmark.
"""

from __future__ import annotations

from benchmarks.token2wav.ways import EXPORTED, OPENVINO, PYTORCH
from qwen_omni_onnx.common.errors import UserError

__all__ = ["reason_not_to_run", "require_room_for_pytorch"]

# How many tensors of the mask's size, [2, heads, frames, frames] float32, are in memory at most. At 3000 frames PyTorch
# took 2; at 1000 the exported graph took 14 in ONNX Runtime, which doubles what it asks for.
_MASKS = {PYTORCH: 3, EXPORTED: 32, OPENVINO: 32}
_BESIDE = 5 * 2**30  # bytes for what else is in memory: weights, and the way that takes turns with this one


def require_room_for_pytorch(heads: int, frames: int) -> None:
    """Refuse a length at which transformers' own DiT, which every other way is compared with, would not fit.

    Raises:
        UserError: it would not.
    """
    reason = reason_not_to_run(PYTORCH, heads, frames)
    if reason:
        raise UserError(f"--seconds: PyTorch {reason}; give a shorter length")


def reason_not_to_run(way: str, heads: int, frames: int) -> str | None:
    """Return why a way cannot evaluate an utterance in the memory that is free; None if it can, as ours always can."""
    needed, free = _MASKS.get(way, 0) * 2 * heads * frames * frames * 4 + _BESIDE, _available()
    return f"takes {needed / 1e9:.0f} GB for {frames} mel frames, {free / 1e9:.0f} are free" if needed > free else None


def _available() -> int:
    import psutil

    return psutil.virtual_memory().available
