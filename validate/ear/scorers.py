"""The scorers: what they have to be able to do, which ones there are, and how another one is plugged in.

A package of one's own names its scorer in an entry point of the group ``qwen_omni_onnx.scorers.transcriber``,
``.rater`` or ``.speaker``: a function that takes the path to a model, or None, and returns the scorer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol, cast, overload

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["KINDS", "Kind", "Rater", "SpeakerEncoder", "Transcriber", "load", "names", "require"]

Kind = Literal["transcriber", "rater", "speaker"]
KINDS: tuple[Kind, ...] = ("transcriber", "rater", "speaker")
_GROUP = "qwen_omni_onnx.scorers"
_OURS: dict[Kind, dict[str, str]] = {
    "transcriber": {"faster-whisper": "validate.ear.whisper:FasterWhisper"},
    "rater": {"dnsmos": "validate.ear.dnsmos:Dnsmos"},
    "speaker": {"ge2e": "validate.ear.ge2e:Ge2e"},
}


class Transcriber(Protocol):
    """Writes down what is said.

    Attributes:
        rate: Sampling rate in Hz of what it is given.
    """

    rate: int

    def transcribe(self, samples: np.ndarray, language: str) -> str:
        """Return what is said in a waveform [samples] float32, in a language as in ISO 639."""
        ...


class Rater(Protocol):
    """Predicts what listeners would say of the quality of speech: a mean opinion score.

    Attributes:
        rate: Sampling rate in Hz of what it is given.
    """

    rate: int

    def rate_speech(self, samples: np.ndarray) -> float:
        """Return a score of 1, bad, to 5, excellent, for a waveform [samples] float32."""
        ...


class SpeakerEncoder(Protocol):
    """Tells speakers apart.

    Attributes:
        rate: Sampling rate in Hz of what it is given.
    """

    rate: int

    def embed(self, samples: np.ndarray) -> np.ndarray:
        """Return a vector of length 1 for a waveform [samples] float32; those of one speaker are close."""
        ...


@overload
def load(kind: Literal["transcriber"], name: str, model: Path | None = None) -> Transcriber: ...
@overload
def load(kind: Literal["rater"], name: str, model: Path | None = None) -> Rater: ...
@overload
def load(kind: Literal["speaker"], name: str, model: Path | None = None) -> SpeakerEncoder: ...
def load(kind: Kind, name: str, model: Path | None = None) -> Transcriber | Rater | SpeakerEncoder:
    """Return a scorer.

    Args:
        kind: What it does.
        name: Name of the scorer: one of :func:`names`.
        model: Its model, for those that need one.

    Raises:
        UserError: There is no such scorer, what it needs is not installed, or it cannot use the model.
    """
    require(kind, name)
    try:
        return cast(Transcriber | Rater | SpeakerEncoder, _factory(kind, name)(model))
    except ImportError as error:
        raise UserError(f"{kind} {name}: {error}; install the extra ear: pip install -e '.[build,ear]'") from None


def require(kind: Kind, name: str) -> None:
    """Refuse a scorer that there is none of; nothing is opened.

    Raises:
        UserError: There is none.
    """
    if name not in names(kind):
        raise UserError(f"{kind} {name!r}: there is none; there are: {', '.join(names(kind))}")


def names(kind: Kind) -> list[str]:
    """Return the names of the scorers that there are, the project's own first."""
    return [*_OURS[kind], *sorted(found.name for found in entry_points(group=f"{_GROUP}.{kind}"))]


def _factory(kind: Kind, name: str) -> Callable[[Path | None], object]:
    if name in _OURS[kind]:
        module, attribute = _OURS[kind][name].split(":")
        return cast(Callable[[Path | None], object], getattr(importlib.import_module(module), attribute))
    [found] = entry_points(group=f"{_GROUP}.{kind}", name=name)
    return cast(Callable[[Path | None], object], found.load())
