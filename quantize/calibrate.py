"""Observe a float32 graph's activations: ``python -m quantize.calibrate COMPONENT``.

Two passes over the clips, one clip in memory at a time. The first finds each channel's largest magnitude, from
which the smoothing factors follow; the second counts the smoothed activations, from which static ranges follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import typer
from safetensors.numpy import save_file

from omni import artifact
from omni.checkpoint import read_config
from omni.component import component
from omni.contract import GraphContract
from omni.errors import Problem, run_command
from omni.inputs import CALIBRATION, FOLDER, Feeds, feed_whole, read
from omni.params import CalibrateParams, load
from omni.resources import progress
from omni.session import open_session, run
from quantize.histogram import Histogram
from quantize.smoothing import smoothing_factors
from quantize.weight import Weight, matmuls

__all__ = ["Observation", "observe"]

_FETCHED_CHANNELS = 2**18  # floats a token: 1 MB
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Observation:
    """What calibration saw of one activation.

    Attributes:
        absmax: largest magnitude of each channel, [channels].
        widened: each clip that raised the largest magnitude, and to what.
        factors: smoothing factors, [channels].
        histogram: of the activation divided by ``factors``.
    """

    absmax: np.ndarray
    widened: list[tuple[str, float]] = field(default_factory=list)
    factors: np.ndarray = field(default_factory=lambda: np.ones(0, np.float32))
    histogram: Histogram = field(default_factory=Histogram)


def observe(
    graph_file: Path, contract: GraphContract, params: CalibrateParams, recordings: Mapping[str, np.ndarray] | Feeds
) -> dict[str, Observation]:
    """Return what was seen of every activation that meets a constant matrix, by name.

    Args:
        graph_file: the float32 graph.
        contract: its interface.
        params: smoothing exponents.
        recordings: of its first input, or of all its inputs, by clip.

    Raises:
        Problem: ``params.nodes`` names a node that is not there; an activation is NaN or infinite, with the clip.
    """
    groups = {str(value.name): nodes for value, nodes in matmuls(ir.load(graph_file).graph).items()}
    alphas = _alphas(groups, params)
    seen = {
        name: Observation(np.zeros(nodes[0].inputs[1].shape.numpy()[0], np.float32)) for name, nodes in groups.items()
    }
    batches = _in_groups(seen)
    with progress("calibrate", 2 * len(batches) * len(recordings)) as advance:
        for names in batches:
            _look(graph_file, contract, recordings, {name: seen[name] for name in names}, _widen, advance)
        energy = {}
        for name, nodes in groups.items():
            weights = [Weight(node.inputs[1].const_value) for node in nodes]
            rows = np.max([weight.row_absmax() for weight in weights], axis=0)
            seen[name].factors = smoothing_factors(seen[name].absmax, rows, alphas[name])
            energy[name] = np.sum([weight.row_energy() for weight in weights], axis=0) * seen[name].factors ** 2

        def count(clip: str, name: str, values: np.ndarray, observation: Observation) -> None:
            observation.histogram.add(values / observation.factors, energy[name])

        for names in batches:
            _look(graph_file, contract, recordings, {name: seen[name] for name in names}, count, advance)
    return seen


def _widen(clip: str, name: str, values: np.ndarray, observation: Observation) -> None:
    largest = np.abs(values).max(0)
    if not np.isfinite(largest).all():
        raise Problem(f"calibration: clip {clip} makes {name} NaN or infinite; look at that clip")
    if largest.max() > observation.absmax.max():
        observation.widened.append((clip, float(largest.max())))
    np.maximum(observation.absmax, largest, out=observation.absmax)


def _in_groups(seen: Mapping[str, Observation]) -> list[list[str]]:
    """Cut the activations into groups that are fetched together: all at once would take more memory than the model."""
    groups: list[list[str]] = [[]]
    channels = 0
    for name, observation in seen.items():
        if channels + len(observation.absmax) > _FETCHED_CHANNELS and groups[-1]:
            groups.append([])
            channels = 0
        groups[-1].append(name)
        channels += len(observation.absmax)
    return groups


def _alphas(groups: Mapping[str, list[ir.Node]], params: CalibrateParams) -> dict[str, float]:
    known = {node.name for nodes in groups.values() for node in nodes}
    for name in params.nodes:
        if name not in known:
            raise Problem(f"calibrate.nodes: no MatMul named {name}; there are {', '.join(sorted(known))}")
    return {
        activation: next((params.nodes[node.name] for node in nodes if node.name in params.nodes), params.smoothing)
        for activation, nodes in groups.items()
    }


def _look(
    graph_file: Path,
    contract: GraphContract,
    recordings: Mapping[str, np.ndarray] | Feeds,
    seen: Mapping[str, Observation],
    take: Callable[[str, str, np.ndarray, Observation], None],
    advance: Callable[[int], None],
) -> None:
    """Run every clip through the graph; show ``take`` each activation's values, [tokens, channels]."""
    session = _observing_session(graph_file, set(seen))
    for clip, recording in recordings.items():
        fed = feed_whole(contract, recording)
        result = {**fed, **run(session, fed)}
        for name, observation in seen.items():
            take(clip, name, result[name].reshape(-1, result[name].shape[-1]), observation)
        advance(1)


def _observing_session(graph_file: Path, names: set[str]) -> ort.InferenceSession:
    """Open the graph with activations as outputs."""
    model = ir.load(graph_file)
    graph = model.graph
    made = (value for node in graph for value in node.outputs)
    graph.outputs.extend(value for value in made if value.name in names and not value.is_graph_output())
    return open_session(ir.to_proto(model).SerializeToString(), data_folder=graph_file.parent)


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
) -> None:
    """Write models/calibration/COMPONENT from models/onnx/COMPONENT and models/inputs/COMPONENT."""
    part, params = component(name), load().component(name)
    onnx, inputs = Path("models/onnx") / name, FOLDER / name
    for folder in (onnx, inputs):
        artifact.check(folder)
    contracts = part.contracts(read_config(onnx))
    bound_to = {"onnx": artifact.fingerprint(onnx), "inputs": artifact.fingerprint(inputs)}
    facts = {"kind": "calibration", "component": name, "made_from": bound_to}
    with artifact.writing(Path("models/calibration") / name, **facts) as folder:
        for stem, contract in contracts.items():
            how = params.of(stem).calibrate
            if how is not None:
                recordings = Feeds(name, stem) if part.runtime else read(name, CALIBRATION)
                _save(observe(onnx / f"{stem}.onnx", contract, how, recordings), how, folder / stem)


def _save(seen: Mapping[str, Observation], params: CalibrateParams, folder: Path) -> None:
    arrays = {}
    for key, observation in seen.items():
        arrays[f"{key}/absmax"] = observation.absmax
        arrays[f"{key}/factors"] = observation.factors
        arrays[f"{key}/range"] = np.array([_static_range(observation, params)], np.float32)
    folder.mkdir()
    save_file(arrays, folder / "calibration.safetensors")
    artifact.write_json(folder / "report.json", {key: _report(o, params) for key, o in seen.items()})


def _static_range(observation: Observation, params: CalibrateParams) -> float:
    return observation.histogram.best_range() * params.headroom


def _report(observation: Observation, params: CalibrateParams) -> dict[str, object]:
    """Say what set the ranges: for a person who wonders where an outlier came from."""
    loudest = np.argsort(observation.absmax)[::-1][:8]
    return {
        "absmax": float(observation.absmax.max()),
        "median_channel_absmax": float(np.median(observation.absmax)),
        "loudest_channels": {str(channel): float(observation.absmax[channel]) for channel in loudest},
        "widened_by": [{"clip": clip, "to": to} for clip, to in observation.widened],
        "smoothed_absmax": observation.histogram.absmax,
        "static_range": _static_range(observation, params),
    }


if __name__ == "__main__":
    run_command(app)
