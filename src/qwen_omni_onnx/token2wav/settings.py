"""What the run-time has to know of token2wav's graphs beside the graphs, and can know before: ``sampler.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import Variant, variants

__all__ = ["SETTINGS", "CodeLimits", "count_of", "read_limits", "read_variants", "settings"]

SETTINGS = "sampler.json"
_TOO_MANY = 1 << 31  # of anything that is counted here
T = TypeVar("T")


@dataclass(frozen=True)
class CodeLimits:
    """What codes may be.

    Attributes:
        different: Number of different codes: they go from 0 to one less.
        max_codes: Codes that an utterance may have, unless it is spoken as a stream.
    """

    different: int
    max_codes: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> CodeLimits:
        """Return what the content of ``sampler.json`` says. Raises as :func:`count_of`."""
        return cls(count_of(settings, "codes"), count_of(settings, "longest") // count_of(settings, "repeats"))

    def require(self, codes: np.ndarray) -> None:
        """Refuse codes that have no sound.

        Args:
            codes: Integers of any kind and shape.

        Raises:
            UserError: There are no codes, or one is out of range.
        """
        if not codes.size:
            raise UserError("codes: none; there is nothing to say")
        lowest, highest = int(codes.min()), int(codes.max())
        if lowest < 0 or highest >= self.different:
            wrong = lowest if lowest < 0 else highest
            raise UserError(
                f"codes: {wrong} is none; they go from 0 to {self.different - 1} (end and pad are to be cut off)"
            )

    def require_number(self, codes: int) -> None:
        """Refuse more codes than can be spoken at once.

        Raises:
            UserError: There are more codes than that.
        """
        if codes > self.max_codes:
            raise UserError(f"codes: {codes} at once; the model goes to {self.max_codes}: cut them, or use the stream")


def read_variants(folder: Path) -> dict[str, Variant]:
    """Return the ways to solve the ODE that a folder's graphs were exported for, by name.

    Raises:
        UserError: The settings are missing, or not what this version writes.
    """
    return _read(folder, lambda settings: variants(settings["variants"]))


def read_limits(folder: Path) -> CodeLimits:
    """Return what codes a folder's graphs take. Raises as :func:`read_variants`."""
    return _read(folder, CodeLimits.of)


def count_of(settings: Mapping[str, Any], name: str, least: int = 1) -> int:
    """Return a whole number of ``sampler.json``, which may be a stranger's.

    Args:
        settings: Content of ``sampler.json``.
        name: Key of the number.
        least: Smallest number that it may be.

    Raises:
        KeyError: It is not there.
        ValueError: It is no whole number, or one that cannot be.
    """
    value = settings[name]
    if type(value) is not int or not least <= value < _TOO_MANY:
        raise ValueError(f"{name}: {value!r:.40}")
    return value


def settings(
    dit: Mapping[str, Any], hop: int, times: np.ndarray, declared: Mapping[str, Any], scale: float
) -> dict[str, Any]:
    """Return the content of ``sampler.json``: what the run-time has to know of the graphs beside the graphs.

    Args:
        dit: DiT's section of ``config.json``.
        hop: Samples of a mel frame.
        times: Times that ``dit_step`` has a row for, [rows].
        declared: Variants by name.
        scale: Scale of classifier-free guidance.
    """
    return {
        "ahead": len(dit["look_ahead_layers"]),
        "back": len(dit["look_backward_layers"]),
        "block": dit["block_size"],
        "codes": dit["num_embeds"],
        "guidance_scale": scale,
        "longest": dit["max_position_embeddings"],
        "mels": dit["mel_dim"],
        "repeats": dit["repeats"],
        "samples_per_frame": hop,
        "times": [float(time) for time in times],
        "variants": declared,
        "voice_width": dit["enc_emb_dim"],
    }


def _read(folder: Path, take: Callable[[Mapping[str, Any]], T]) -> T:
    path = folder / SETTINGS
    try:
        return take(artifact.read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not what this version of the project writes ({error}); export again") from None
