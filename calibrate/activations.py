"""Statistics of every activation that a constant matrix multiplies, and the exact changes that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibrate.clips import require_finite, run_clips
from calibrate.factors import rms_factors, searched_factors, smoothing_factors
from calibrate.histogram import Histogram
from omni.change import Change
from omni.grouped_query import shared_channels
from omni.inputs import Feeds
from omni.params import CalibrateParams
from omni.patterns import require_matches
from omni.quantization import RMS, NodeCalibration
from omni.resources import progress
from omni.segments import Segments
from omni.stored import load_graph
from omni.weight import Weight, matmuls
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Observation", "observe"]

_FETCHED_CHANNELS = 2**18  # channels fetched together: 1 MB per token
_SAMPLED = 300  # tokens that a search tries its factors on


@dataclass
class Observation:
    """Statistics of one activation that a MatMul reads.

    Attributes:
        low: Smallest value of each channel, [channels].
        high: Largest value of each channel, [channels].
        total: Sum of each channel, [channels] float64.
        squares: Sum of each channel's squares, [channels] float64.
        tokens: Number of tokens.
        widened: Clips that raised the largest magnitude, each with the new value.
        factors: Smoothing factors, [channels].
        shift: What is subtracted from each channel, [channels]; None if nothing is.
        run: Number of channels that a Hadamard rotation mixes; 0 if there is none.
        histogram: Histogram of the changed activation.
    """

    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    tokens: int = 0
    widened: list[tuple[str, float]] = field(default_factory=list)
    factors: np.ndarray = field(default_factory=lambda: np.ones(0, np.float32))
    shift: np.ndarray | None = None
    run: int = 0
    histogram: Histogram = field(default_factory=Histogram)
    sample: Sample | None = None

    @classmethod
    def empty(cls, channels: int) -> Observation:
        """Return the statistics of no token."""
        bounds = np.full((2, channels), np.inf, np.float32)
        return cls(bounds[0], -bounds[1], *np.zeros((2, channels)))

    @property
    def absmax(self) -> np.ndarray:
        """Largest magnitude of each channel, [channels]; 0 where there was no token."""
        return np.maximum(np.maximum(-self.low, self.high), 0)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel, [channels]."""
        return (self.total / max(1, self.tokens)).astype(np.float32)

    @property
    def rms(self) -> np.ndarray:
        """Root mean square of each channel, [channels]."""
        return np.sqrt(self.squares / max(1, self.tokens)).astype(np.float32)

    def add(self, clip: str, values: np.ndarray) -> None:
        """Add a clip's values, [tokens, channels]."""
        before = self.absmax.max(initial=0.0)
        np.minimum(self.low, values.min(0, initial=np.inf), out=self.low)
        np.maximum(self.high, values.max(0, initial=-np.inf), out=self.high)
        self.total += values.sum(0, dtype=np.float64)
        self.squares += np.square(values, dtype=np.float64).sum(0)
        self.tokens += len(values)
        if (largest := float(self.absmax.max(initial=0.0))) > before:
            self.widened.append((clip, largest))
        if self.sample is not None:
            self.sample.add(values)

    def changed(self, values: np.ndarray) -> np.ndarray:
        """Return values [tokens, channels] as the quantized operator reads them."""
        return Change(self.factors, self.shift, self.run).of(values)


class Sample:
    """A random sample of an activation's tokens, the same one in every run.

    Attributes:
        values: The tokens, [at most 300, channels].
    """

    def __init__(self, channels: int) -> None:
        self.values = np.zeros((0, channels), np.float32)
        self._keys = np.zeros(0)
        self._random = np.random.default_rng(0)

    def add(self, values: np.ndarray) -> None:
        """Add tokens [tokens, channels]; those with the smallest random keys stay."""
        keys = np.concatenate([self._keys, self._random.random(len(values))])
        stay = np.argsort(keys, kind="stable")[:_SAMPLED]
        self._keys, self.values = keys[stay], np.concatenate([self.values, values])[stay]


def observe(
    graph_file: Path, contract: GraphContract, params: CalibrateParams, recordings: Mapping[str, np.ndarray] | Feeds
) -> dict[str, Observation]:
    """Return statistics of every activation that is multiplied by a constant matrix, by name.

    The first pass of the clips measures the channels, from which the changes follow; a second one, for static ranges,
    collects histograms of the changed activations.

    Args:
        graph_file: The float32 graph.
        contract: Interface of the graph.
        params: How activations are changed.
        recordings: Recordings of the first input, or of all inputs, by clip.

    Raises:
        UserError: A pattern of ``params.nodes`` matches no node; a rotation does not fit an activation; an activation
            is NaN or infinite, and the message names the clip.
    """
    groups = {str(value.name): nodes for value, nodes in matmuls(load_graph(graph_file).graph).items()}
    chosen = _chosen(groups, params)
    observations = {name: Observation.empty(_channels(nodes)) for name, nodes in groups.items()}
    for name, settings in chosen.items():
        channels = _channels(groups[name])
        if settings.rotation and channels % settings.rotation:
            raise UserError(f"calibrate: rotation of {settings.rotation}: {name} has {channels} channels, no multiple")
        if settings.smoothing == "search":
            observations[name].sample = Sample(channels)
    segments = Segments(graph_file, observations, partial(_in_groups, observations))
    passes = 1 if params.headroom is None else 2
    with progress("calibrate", passes * segments.sessions * len(recordings)) as advance:

        def measure(clip: str, name: str, values: np.ndarray, observation: Observation) -> None:
            require_finite(clip, name, values)
            observation.add(clip, values)

        run_clips(segments, contract, recordings, observations, measure, advance)
        for name, nodes in groups.items():
            _choose(observations[name], chosen[name], nodes)
        if params.headroom is None:
            return observations
        energy = {name: _energy(observations[name], nodes) for name, nodes in groups.items()}

        def count(clip: str, name: str, values: np.ndarray, observation: Observation) -> None:
            observation.histogram.add(observation.changed(values), energy[name])

        run_clips(segments, contract, recordings, observations, count, advance)
    return observations


def _choose(observation: Observation, settings: NodeCalibration, nodes: Sequence[ir.Node]) -> None:
    """Set an activation's change."""
    observation.run = settings.rotation
    absmax, rms = observation.absmax, observation.rms
    if settings.shift:
        observation.shift = observation.mean
        absmax = np.maximum(np.maximum(observation.high - observation.mean, observation.mean - observation.low), 0)
        rms = np.sqrt(np.maximum(np.square(rms) - np.square(observation.mean), 0))
    observation.factors = _factors(observation, settings, nodes, absmax, rms)
    observation.sample = None


def _energy(observation: Observation, nodes: Sequence[ir.Node]) -> np.ndarray:
    """Return the energy of the matrices' rows that multiply each changed channel, [in]."""
    rows = np.sum([weight.row_energy() for weight in _weights(nodes)], axis=0) * observation.factors**2
    return np.repeat(rows.reshape(-1, observation.run).mean(1), observation.run) if observation.run else rows


def _weights(nodes: Sequence[ir.Node]) -> list[Weight]:
    return [Weight(node.inputs[1].const_value) for node in nodes]


def _factors(
    observation: Observation,
    settings: NodeCalibration,
    nodes: Sequence[ir.Node],
    absmax: np.ndarray,
    rms: np.ndarray,
) -> np.ndarray:
    """Return an activation's smoothing factors [channels]; channels that share a factor count as the loudest of them.

    Args:
        observation: Statistics of the activation; its sample is shifted.
        settings: How the factors are chosen.
        nodes: The MatMuls that read the activation.
        absmax: Largest magnitude of each shifted channel, [channels].
        rms: Root mean square of each shifted channel, [channels].
    """
    smoothing = settings.smoothing
    if smoothing == "none":
        return np.ones(len(absmax), np.float32)
    activation = nodes[0].inputs[0]
    assert activation is not None
    shared = shared_channels(activation, len(absmax))
    groups = np.arange(len(absmax)) if shared is None else shared
    if smoothing == "search":
        if shared is not None:
            raise UserError(f"calibrate: {nodes[0].name}: heads share its channels, a search does not; give a number")
        assert observation.sample is not None
        tokens = observation.sample.values
        tokens = tokens if observation.shift is None else tokens - observation.shift
        return searched_factors(tokens, absmax, rms, [weight.whole() for weight in _weights(nodes)], settings.rotation)
    if isinstance(smoothing, str):
        return rms_factors(_loudest(rms, groups), float(smoothing.removeprefix(RMS)))[groups]
    rows = np.max([weight.row_absmax() for weight in _weights(nodes)], axis=0)
    return smoothing_factors(_loudest(absmax, groups), _loudest(rows, groups), smoothing)[groups]


def _loudest(channels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the largest value of each group of channels, [groups]."""
    largest = np.zeros(groups.max() + 1, np.float32)
    np.maximum.at(largest, groups, channels)
    return largest


def _channels(nodes: Sequence[ir.Node]) -> int:
    return int(nodes[0].inputs[1].shape.numpy()[0])


def _in_groups(observations: Mapping[str, Observation], names: list[str]) -> list[list[str]]:
    """Split activations into groups that are fetched together: all of them would take more memory than the model."""
    groups: list[list[str]] = [[]]
    channels = 0
    for name in names:
        width = len(observations[name].total)
        if channels + width > _FETCHED_CHANNELS and groups[-1]:
            groups.append([])
            channels = 0
        groups[-1].append(name)
        channels += width
    return groups


def _chosen(groups: Mapping[str, list[ir.Node]], params: CalibrateParams) -> dict[str, NodeCalibration]:
    """Return how each activation is changed: as the first of its readers says that a pattern names."""
    require_matches("calibrate.nodes", params.nodes, [str(node.name) for nodes in groups.values() for node in nodes])
    found = {name: [params.named(str(node.name)) for node in nodes] for name, nodes in groups.items()}
    return {
        name: next((settings for settings in settings_of if settings is not None), params.everywhere)
        for name, settings_of in found.items()
    }
