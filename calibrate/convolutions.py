"""Statistics of every activation that a convolution reads or produces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calibrate.clips import require_finite, run_clips
from calibrate.histogram import SignedHistogram
from omni.inputs import Feeds
from omni.resources import progress
from omni.segments import Segments
from omni.stored import load_graph
from omni.weight import Kernel, convolutions
from qwen_omni_onnx.common.contract import GraphContract

__all__ = ["Convolved", "observe_convolutions"]

_FETCHED = 64  # activations fetched together; a vocoder's have 4,000 to 6,000 floats per mel frame each
_MANY, _EVERY = 2**18, 7  # beyond this many values per clip, every seventh is counted: coprime to all upsampling rates


@dataclass
class Convolved:
    """Statistics of one activation that a convolution reads or produces.

    Attributes:
        absmax: Largest magnitude of each channel, [channels].
        energy: Sum of squares of the weights that multiply each channel, [channels]; 0 where no convolution reads it.
        widened: Clips that raised the largest magnitude, each with the new value.
        histogram: Histogram of the activation.
    """

    absmax: np.ndarray
    energy: np.ndarray
    widened: list[tuple[str, float]] = field(default_factory=list)
    histogram: SignedHistogram = field(default_factory=SignedHistogram)

    def widen(self, clip: str, largest: np.ndarray) -> None:
        """Take a clip's largest magnitude of each channel, [channels]."""
        if largest.max() > self.absmax.max():
            self.widened.append((clip, float(largest.max())))
        np.maximum(self.absmax, largest, out=self.absmax)


def observe_convolutions(
    graph_file: Path, contract: GraphContract, recordings: Mapping[str, np.ndarray] | Feeds
) -> dict[str, Convolved]:
    """Return statistics of every activation that a convolution reads or produces, by name.

    One pass suffices, because these activations are not smoothed.

    Args:
        graph_file: The float32 graph.
        contract: Interface of the graph.
        recordings: Recordings of the first input, or of all inputs, by clip.

    Raises:
        UserError: An activation is NaN or infinite; the message names the clip.
    """
    observations: dict[str, Convolved] = {}
    for node in convolutions(load_graph(graph_file).graph):
        kernel = Kernel(node.inputs[1].const_value)
        for value, channels in ((node.inputs[0], kernel.shape[1]), (node.outputs[0], kernel.shape[0])):
            observations.setdefault(str(value.name), Convolved(np.zeros(channels, np.float32), np.zeros(channels)))
        observations[str(node.inputs[0].name)].energy += kernel.in_energy()
    segments = Segments(graph_file, observations, _in_fixed_groups)

    def count(clip: str, name: str, values: np.ndarray, observation: Convolved) -> None:
        require_finite(clip, name, values)
        observation.widen(clip, np.abs(values).max(0))
        counted = values[::_EVERY] if values.size > _MANY else values
        observation.histogram.add(counted, observation.energy if observation.energy.any() else np.ones(1))

    with progress("calibrate convolutions", segments.sessions * len(recordings)) as advance:
        run_clips(segments, contract, recordings, observations, count, advance, axis=1)
    return observations


def _in_fixed_groups(names: list[str]) -> list[list[str]]:
    return [names[start : start + _FETCHED] for start in range(0, len(names), _FETCHED)]
