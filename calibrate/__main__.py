"""Calibrate a float32 graph's activations: ``python -m calibrate COMPONENT``.

The clips run through the graph twice, with one clip, and one segment of a large graph, in memory at a time. The first
pass measures each channel's absmax, from which the smoothing factors follow; the second collects histograms of the
smoothed activations, from which static ranges follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import onnx_ir as ir
import typer
from safetensors.numpy import save_file

from calibrate.factors import smoothing_factors
from calibrate.histogram import Histogram, SignedHistogram
from calibrate.segments import Segments
from components import require_own
from omni.grouped_query import shared_channels
from omni.inputs import CALIBRATION, FOLDER, Feeds, read
from omni.params import CalibrateParams, load
from omni.patterns import first_match, require_matches
from omni.resources import progress
from omni.weight import Kernel, Weight, convolutions, matmuls
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Convolved", "Observation", "observe", "observe_convolutions"]

_FETCHED_CHANNELS = 2**18  # channels fetched together: 1 MB per token
_FETCHED_CONVOLVED = 64  # activations fetched together; a vocoder's have 4,000 to 6,000 floats per mel frame each
_MANY, _EVERY = 2**18, 7  # beyond this many values per clip, every seventh is counted: coprime to all upsampling rates
_Statistics = TypeVar("_Statistics", "Observation", "Convolved")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Observation:
    """Statistics of one activation that a MatMul reads.

    Attributes:
        absmax: Largest magnitude of each channel, [channels].
        widened: Clips that raised the largest magnitude, each with the new value.
        factors: Smoothing factors, [channels].
        histogram: Histogram of the activation divided by ``factors``.
    """

    absmax: np.ndarray
    widened: list[tuple[str, float]] = field(default_factory=list)
    factors: np.ndarray = field(default_factory=lambda: np.ones(0, np.float32))
    histogram: Histogram = field(default_factory=Histogram)


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


def observe(
    graph_file: Path, contract: GraphContract, params: CalibrateParams, recordings: Mapping[str, np.ndarray] | Feeds
) -> dict[str, Observation]:
    """Return statistics of every activation that is multiplied by a constant matrix, by name.

    Args:
        graph_file: The float32 graph.
        contract: Interface of the graph.
        params: Smoothing exponents.
        recordings: Recordings of the first input, or of all inputs, by clip.

    Raises:
        UserError: A pattern of ``params.nodes`` matches no node; an activation is NaN or infinite, and the message
            names the clip.
    """
    groups = {str(value.name): nodes for value, nodes in matmuls(ir.load(graph_file).graph).items()}
    alphas = _alphas(groups, params)
    observations = {
        name: Observation(np.zeros(nodes[0].inputs[1].shape.numpy()[0], np.float32)) for name, nodes in groups.items()
    }
    segments = Segments(graph_file, observations, partial(_in_groups, observations))
    with progress("calibrate", 2 * segments.sessions * len(recordings)) as advance:
        _run_clips(segments, contract, recordings, observations, _update_absmax, advance)
        energy = {}
        for name, nodes in groups.items():
            weights = [Weight(node.inputs[1].const_value) for node in nodes]
            rows = np.max([weight.row_absmax() for weight in weights], axis=0)
            shared = shared_channels(nodes[0].inputs[0], len(rows))
            observations[name].factors = _factors(observations[name].absmax, rows, alphas[name], shared)
            energy[name] = np.sum([weight.row_energy() for weight in weights], axis=0) * observations[name].factors ** 2

        def count(clip: str, name: str, values: np.ndarray, observation: Observation) -> None:
            observation.histogram.add(values / observation.factors, energy[name])

        _run_clips(segments, contract, recordings, observations, count, advance)
    return observations


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
    for node in convolutions(ir.load(graph_file).graph):
        kernel = Kernel(node.inputs[1].const_value)
        for value, channels in ((node.inputs[0], kernel.shape[1]), (node.outputs[0], kernel.shape[0])):
            observations.setdefault(str(value.name), Convolved(np.zeros(channels, np.float32), np.zeros(channels)))
        observations[str(node.inputs[0].name)].energy += kernel.in_energy()
    segments = Segments(graph_file, observations, _in_fixed_groups)

    def count(clip: str, name: str, values: np.ndarray, observation: Convolved) -> None:
        _update_absmax(clip, name, values, observation)
        counted = values[::_EVERY] if values.size > _MANY else values
        observation.histogram.add(counted, observation.energy if observation.energy.any() else np.ones(1))

    with progress("calibrate convolutions", segments.sessions * len(recordings)) as advance:
        _run_clips(segments, contract, recordings, observations, count, advance, axis=1)
    return observations


def _update_absmax(clip: str, name: str, values: np.ndarray, observation: Observation | Convolved) -> None:
    largest = np.abs(values).max(0)
    if not np.isfinite(largest).all():
        raise UserError(f"calibration: clip {clip} makes {name} NaN or infinite; look at that clip")
    if largest.max() > observation.absmax.max():
        observation.widened.append((clip, float(largest.max())))
    np.maximum(observation.absmax, largest, out=observation.absmax)


def _in_groups(observations: Mapping[str, Observation], names: list[str]) -> list[list[str]]:
    """Split activations into groups that are fetched together: all of them would take more memory than the model."""
    groups: list[list[str]] = [[]]
    channels = 0
    for name in names:
        width = len(observations[name].absmax)
        if channels + width > _FETCHED_CHANNELS and groups[-1]:
            groups.append([])
            channels = 0
        groups[-1].append(name)
        channels += width
    return groups


def _in_fixed_groups(names: list[str]) -> list[list[str]]:
    return [names[start : start + _FETCHED_CONVOLVED] for start in range(0, len(names), _FETCHED_CONVOLVED)]


def _factors(absmax: np.ndarray, rows: np.ndarray, alpha: float, shared: np.ndarray | None) -> np.ndarray:
    """Return an activation's smoothing factors [channels]; channels that share a factor have their common absmax."""
    if shared is None:
        return smoothing_factors(absmax, rows, alpha)
    largest, largest_rows = np.zeros((2, shared.max() + 1), np.float32)
    np.maximum.at(largest, shared, absmax)
    np.maximum.at(largest_rows, shared, rows)
    return smoothing_factors(largest, largest_rows, alpha)[shared]


def _alphas(groups: Mapping[str, list[ir.Node]], params: CalibrateParams) -> dict[str, float]:
    require_matches("calibrate.nodes", params.nodes, [str(node.name) for nodes in groups.values() for node in nodes])
    found = {
        activation: [first_match(params.nodes, str(node.name)) for node in nodes]
        for activation, nodes in groups.items()
    }
    return {
        activation: next((alpha for alpha in alphas if alpha is not None), params.smoothing)
        for activation, alphas in found.items()
    }


def _run_clips(
    segments: Segments,
    contract: GraphContract,
    recordings: Mapping[str, np.ndarray] | Feeds,
    observations: Mapping[str, _Statistics],
    take: Callable[[str, str, np.ndarray, _Statistics], None],
    advance: Callable[[int], None],
    axis: int = -1,
) -> None:
    """Run every clip through the graph; call ``take`` with each activation's values, [tokens, channels].

    ``axis`` is the axis of the channels in the graph.
    """

    def show(clip: str, found: Mapping[str, np.ndarray]) -> None:
        for name, array in found.items():
            values = np.moveaxis(array, axis, -1)
            take(clip, name, values.reshape(-1, values.shape[-1]), observations[name])
        advance(1)

    segments.run(contract, recordings, show)


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Component that is calibrated.")],
) -> None:
    """Write models/calibration/COMPONENT from models/onnx/COMPONENT and models/inputs/COMPONENT."""
    description, params = require_own(name), load().component(name)
    onnx, inputs = Path("models/onnx") / name, FOLDER / name
    for folder in (onnx, inputs):
        artifact.check(folder)
    contracts = description.contracts(read_config(onnx))
    params.require_graphs(name, contracts)
    bound_to = {"onnx": artifact.fingerprint(onnx), "inputs": artifact.fingerprint(inputs)}
    facts = {"kind": "calibration", "component": name, "made_from": bound_to}
    with artifact.writing(Path("models/calibration") / name, **facts) as folder:
        for stem, contract in contracts.items():
            calibration = first_match(params.calibrate, stem)
            if calibration is not None:
                recordings = Feeds(name, stem) if len(contracts) > 1 else read(name, CALIBRATION)
                observations = observe(onnx / f"{stem}.onnx", contract, calibration, recordings)
                convolved = observe_convolutions(onnx / f"{stem}.onnx", contract, recordings)
                _save(observations, convolved, calibration, folder / stem)


def _save(
    observations: Mapping[str, Observation], convolved: Mapping[str, Convolved], params: CalibrateParams, folder: Path
) -> None:
    arrays, report = {}, {}
    for key, activation in convolved.items():
        span = _span(activation, params)
        arrays[f"{key}/absmax"] = activation.absmax
        arrays[f"{key}/factors"] = np.ones_like(activation.absmax)
        arrays[f"{key}/range"] = np.array([max(map(abs, span))], np.float32)
        arrays[f"{key}/span"] = np.array(span, np.float32)
        report[key] = {**_outlier_report(activation), "span": span}
    for key, observation in observations.items():
        arrays[f"{key}/absmax"] = observation.absmax
        arrays[f"{key}/factors"] = observation.factors
        arrays[f"{key}/range"] = np.array([_static_range(observation, params)], np.float32)
        report[key] = {**report.get(key, {}), **_report(observation, params)}
    folder.mkdir()
    save_file(arrays, folder / "calibration.safetensors")
    artifact.write_json(folder / "report.json", report)


def _static_range(observation: Observation, params: CalibrateParams) -> float:
    return observation.histogram.best_range() * params.headroom


def _span(activation: Convolved, params: CalibrateParams) -> tuple[float, float]:
    low, high = activation.histogram.best_range()
    return low * params.headroom, high * params.headroom


def _report(observation: Observation, params: CalibrateParams) -> dict[str, object]:
    return {
        **_outlier_report(observation),
        "smoothed_absmax": observation.histogram.absmax,
        "static_range": _static_range(observation, params),
    }


def _outlier_report(observation: Observation | Convolved) -> dict[str, object]:
    """Return the loudest channels and the clips that widened the range, for tracing an outlier to its source."""
    loudest = np.argsort(observation.absmax)[::-1][:8]
    return {
        "absmax": float(observation.absmax.max()),
        "median_channel_absmax": float(np.median(observation.absmax)),
        "loudest_channels": {str(channel): float(observation.absmax[channel]) for channel in loudest},
        "widened_by": [{"clip": clip, "to": to} for clip, to in observation.widened],
    }


if __name__ == "__main__":
    run_app(app)
