"""Statistics of every activation that a constant matrix multiplies, and the exact changes that follow from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibrate.clips import require_finite
from calibrate.factors import rms_factors, searched_factors, smoothing_factors
from calibrate.histogram import Histogram
from omni.change import Change
from omni.grouped_query import shared_channels
from omni.inputs import Feeds
from omni.params import CalibrateParams
from omni.patterns import require_matches
from omni.pieces.clips import Measuring, measure_clips
from omni.pieces.work import OneProcess, Pool
from omni.quantization import RMS, NodeCalibration
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
        sample: Some of its tokens, where a search tries factors on them.
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

    def add(self, clip: str, found: ClipStatistics) -> None:
        """Add a clip's statistics; clips come in their order."""
        before = self.absmax.max(initial=0.0)
        np.minimum(self.low, found.low, out=self.low)
        np.maximum(self.high, found.high, out=self.high)
        self.total += found.total
        self.squares += found.squares
        self.tokens += found.tokens
        if (largest := float(self.absmax.max(initial=0.0))) > before:
            self.widened.append((clip, largest))
        if found.sample is not None:
            self.sample = found.sample if self.sample is None else self.sample.merged(found.sample)

    @property
    def change(self) -> Change:
        """How the values are changed before the quantized operator reads them."""
        return Change(self.factors, self.shift, self.run)


@dataclass(frozen=True)
class Sample:
    """A random sample of an activation's tokens, the same one in every run: those with the smallest random keys.

    Attributes:
        keys: Keys, [at most 300].
        values: The tokens, [at most 300, channels].
    """

    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, clip: str, values: np.ndarray) -> Sample:
        """Return a sample of a clip's tokens [tokens, channels]; the clip's name seeds their keys."""
        keys = np.random.default_rng(list(clip.encode())).random(len(values))
        return cls._smallest(keys, values)

    def merged(self, other: Sample) -> Sample:
        """Return a sample of the tokens of both; the order of many does not count."""
        return self._smallest(np.concatenate([self.keys, other.keys]), np.concatenate([self.values, other.values]))

    @classmethod
    def _smallest(cls, keys: np.ndarray, values: np.ndarray) -> Sample:
        stay = np.argsort(keys, kind="stable")[:_SAMPLED]
        return cls(keys[stay], values[stay])


@dataclass(frozen=True)
class ClipStatistics:
    """Statistics of one activation in one clip: see :class:`Observation`."""

    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    tokens: int
    sample: Sample | None

    @classmethod
    def of(cls, sampled: Collection[str], clip: str, name: str, values: np.ndarray) -> ClipStatistics:
        """Return the statistics of values [tokens, channels].

        Args:
            sampled: Names of the activations of which tokens are sampled.
            clip: Name of the clip.
            name: Name of the activation.
            values: The values.

        Raises:
            UserError: One is NaN or infinite.
        """
        require_finite(clip, name, values)
        return cls(
            low=values.min(0, initial=np.inf),
            high=values.max(0, initial=-np.inf),
            total=values.sum(0, dtype=np.float64),
            squares=np.square(values, dtype=np.float64).sum(0),
            tokens=len(values),
            sample=Sample.of(clip, values) if name in sampled else None,
        )


def observe(
    graph_file: Path,
    contract: GraphContract,
    params: CalibrateParams,
    recordings: Mapping[str, np.ndarray] | Feeds,
    pool: Pool | None = None,
) -> dict[str, Observation]:
    """Return statistics of every activation that is multiplied by a constant matrix, by name.

    The first pass of the clips measures the channels, from which the changes follow; a second one, for static ranges,
    collects histograms of the changed activations.

    Args:
        graph_file: The float32 graph.
        contract: Interface of the graph.
        params: How activations are changed.
        recordings: Recordings of the first input, or of all inputs, by clip.
        pool: Processes that share the work; None: this one alone.

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
    sampled = frozenset(name for name, settings in chosen.items() if settings.smoothing == "search")
    widths = {name: len(observation.total) for name, observation in observations.items()}
    pool = pool or OneProcess()
    work = Measuring(
        graph_file, contract, tuple(widths), partial(_in_groups, widths), partial(ClipStatistics.of, sampled)
    )
    measure_clips(work, recordings, lambda clip, name, found: observations[name].add(clip, found), "calibrate", pool)
    for name, nodes in groups.items():
        _choose(observations[name], chosen[name], nodes)
    if params.headroom is None:
        return observations
    changes = {name: (one.change, _energy(one, groups[name])) for name, one in observations.items()}
    counting = Measuring(graph_file, contract, work.names, work.group, partial(_counted, changes))
    measure_clips(
        counting, recordings, lambda _, name, found: observations[name].histogram.merge(found), "calibrate", pool
    )
    return observations


def _counted(changes: Mapping[str, tuple[Change, np.ndarray]], clip: str, name: str, values: np.ndarray) -> Histogram:
    """Return a histogram of changed values, given each activation's change and the weight of each channel."""
    change, energy = changes[name]
    histogram = Histogram()
    histogram.add(change.of(values), energy)
    return histogram


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


def _in_groups(widths: Mapping[str, int], names: list[str]) -> list[list[str]]:
    """Split activations into groups that are fetched together: all of them would take more memory than the model."""
    groups: list[list[str]] = [[]]
    channels = 0
    for name in names:
        width = widths[name]
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
