"""Statistics of every activation that a convolution reads or produces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from calibrate.clips import require_finite
from calibrate.histogram import SignedHistogram
from omni.inputs import Feeds
from omni.pieces.clips import Measuring, measure_clips
from omni.pieces.work import OneProcess, Pool
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
    graph_file: Path,
    contract: GraphContract,
    recordings: Mapping[str, np.ndarray] | Feeds,
    pool: Pool | None = None,
) -> dict[str, Convolved]:
    """Return statistics of every activation that a convolution reads or produces, by name.

    One pass suffices, because these activations are not smoothed.

    Args:
        graph_file: The float32 graph.
        contract: Interface of the graph.
        recordings: Recordings of the first input, or of all inputs, by clip.
        pool: Processes that share the work; None: this one alone.

    Raises:
        UserError: An activation is NaN or infinite; the message names the clip.
    """
    observations: dict[str, Convolved] = {}
    for node in convolutions(load_graph(graph_file).graph):
        kernel = Kernel(node.inputs[1].const_value)
        for value, channels in ((node.inputs[0], kernel.shape[1]), (node.outputs[0], kernel.shape[0])):
            observations.setdefault(str(value.name), Convolved(np.zeros(channels, np.float32), np.zeros(channels)))
        observations[str(node.inputs[0].name)].energy += kernel.in_energy()
    energies = {name: seen.energy if seen.energy.any() else np.ones(1) for name, seen in observations.items()}
    work = Measuring(graph_file, contract, tuple(observations), _in_fixed_groups, partial(_measured, energies), axis=1)

    def take(clip: str, name: str, found: tuple[np.ndarray, SignedHistogram]) -> None:
        largest, histogram = found
        observations[name].widen(clip, largest)
        observations[name].histogram.merge(histogram)

    measure_clips(work, recordings, take, "calibrate convolutions", pool or OneProcess())
    return observations


def _measured(
    energies: Mapping[str, np.ndarray], clip: str, name: str, values: np.ndarray
) -> tuple[np.ndarray, SignedHistogram]:
    """Return the largest magnitude of each channel, and a histogram."""
    require_finite(clip, name, values)
    histogram = SignedHistogram()
    histogram.add(values[::_EVERY] if values.size > _MANY else values, energies[name])
    return np.abs(values).max(0), histogram


def _in_fixed_groups(names: list[str]) -> list[list[str]]:
    return [names[start : start + _FETCHED] for start in range(0, len(names), _FETCHED)]
