"""What tests read of a reply."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qwen_omni_onnx.reply import AudioChunk, Event

__all__ = ["waveform_of"]


def waveform_of(events: Iterable[Event]) -> np.ndarray:
    """Return the sound in what came of a reply."""
    return np.concatenate([event.waveform for event in events if isinstance(event, AudioChunk)])
