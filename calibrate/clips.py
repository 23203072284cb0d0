"""Runs clips through a graph and hands over the values of activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from omni.inputs import Feeds, tokens_of
from omni.segments import Segments
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["require_finite", "run_clips"]

_Statistics = TypeVar("_Statistics")


def require_finite(clip: str, name: str, values: np.ndarray) -> None:
    """Check an activation's values.

    Raises:
        UserError: A value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise UserError(f"calibration: clip {clip} makes {name} NaN or infinite; look at that clip")


def run_clips(
    segments: Segments,
    contract: GraphContract,
    recordings: Mapping[str, np.ndarray] | Feeds,
    observations: Mapping[str, _Statistics],
    take: Callable[[str, str, np.ndarray, _Statistics], None],
    advance: Callable[[int], None],
    axis: int = -1,
) -> None:
    """Run every clip through the graph; show each activation's values.

    Args:
        segments: The graph.
        contract: Interface of the graph.
        recordings: Recordings of the first input, or of all inputs, by clip.
        observations: Statistics by activation.
        take: Takes clip, activation, values [tokens, channels] and statistics.
        advance: Advances the progress bar.
        axis: Axis of the channels in the graph. If it is the last one, places that the graph fills up beyond the end
            of a clip are left out.
    """

    def show(clip: str, found: Mapping[str, np.ndarray]) -> None:
        for name, array in found.items():
            if axis == -1:
                values = tokens_of(contract, recordings, clip, array)
            else:
                values = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
            take(clip, name, values, observations[name])
        advance(1)

    segments.run(contract, recordings, show)
