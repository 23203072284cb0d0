"""Observe a float32 graph's activations: ``python -m quantize.calibrate COMPONENT``.

Two passes over the batches, one batch in memory at a time. The first finds each channel's largest magnitude, from
which the smoothing factors follow; the second counts the smoothed activations, from which static ranges follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import typer
from safetensors.numpy import save_file

from omni import artifact
from omni.component import component
from omni.errors import Problem, run_command
from omni.inputs import calibration_batches, describe
from omni.params import CalibrateParams, InputParams, load
from omni.session import open_session, run
from quantize.histogram import Histogram
from quantize.smoothing import smoothing_factors
from quantize.weight import Weight, matmuls

__all__ = ["Observation", "observe"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Observation:
    """What calibration saw of one activation.

    Attributes:
        absmax: largest magnitude of each channel, [channels].
        widened: each batch that raised the largest magnitude, and to what.
        factors: smoothing factors, [channels].
        histogram: of the activation divided by ``factors``.
    """

    absmax: np.ndarray
    widened: list[tuple[str, float]] = field(default_factory=list)
    factors: np.ndarray = field(default_factory=lambda: np.ones(0, np.float32))
    histogram: Histogram = field(default_factory=Histogram)


def observe(graph_file: Path, params: CalibrateParams, inputs: InputParams) -> dict[str, Observation]:
    """Return what was seen of every activation that meets a constant matrix, by name.

    Raises:
        Problem: ``params.nodes`` names a node that is not there; an activation is NaN or infinite, with the batch.
    """
    groups = matmuls(ir.load(graph_file).graph)
    alphas = _alphas(groups, params)
    session = _observing_session(graph_file)
    width = int(session.get_inputs()[0].shape[-1])
    seen = {
        str(value.name): Observation(np.zeros(nodes[0].inputs[1].shape.numpy()[0], np.float32))
        for value, nodes in groups.items()
    }
    for batch, name, values in _activations(session, seen, calibration_batches(inputs, width)):
        observation = seen[name]
        largest = np.abs(values).max(0)
        if not np.isfinite(largest).all():
            raise Problem(f"calibration: batch {batch} makes {name} NaN or infinite; look at that batch")
        if largest.max() > observation.absmax.max():
            observation.widened.append((batch, float(largest.max())))
        np.maximum(observation.absmax, largest, out=observation.absmax)
    energy = {}
    for value, nodes in groups.items():
        name = str(value.name)
        weights = [Weight(node.inputs[1].const_value) for node in nodes]
        rows = np.max([weight.row_absmax() for weight in weights], axis=0)
        seen[name].factors = smoothing_factors(seen[name].absmax, rows, alphas[name])
        energy[name] = np.sum([weight.row_energy() for weight in weights], axis=0) * seen[name].factors ** 2
    for _, name, values in _activations(session, seen, calibration_batches(inputs, width)):
        seen[name].histogram.add(values / seen[name].factors, energy[name])
    return seen


def _alphas(groups: dict[ir.Value, list[ir.Node]], params: CalibrateParams) -> dict[str, float]:
    known = {node.name for nodes in groups.values() for node in nodes}
    for name in params.nodes:
        if name not in known:
            raise Problem(f"calibrate.nodes: no MatMul named {name}; there are {', '.join(sorted(known))}")
    return {
        value.name: next((params.nodes[node.name] for node in nodes if node.name in params.nodes), params.smoothing)
        for value, nodes in groups.items()
    }


def _observing_session(graph_file: Path) -> ort.InferenceSession:
    """Open the graph with every activation that meets a constant matrix as an output."""
    model = ir.load(graph_file)
    graph = model.graph
    graph.outputs.extend(value for value in matmuls(graph) if value.producer() and not value.is_graph_output())
    return open_session(ir.to_proto(model).SerializeToString(), data_folder=graph_file.parent)


def _activations(
    session: ort.InferenceSession, names: Iterable[str], batches: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (batch, activation, values [tokens, channels]) for every batch and every activation."""
    (port,) = session.get_inputs()
    for batch, array in batches:
        result = {port.name: array, **run(session, {port.name: array})}
        for name in names:
            yield batch, name, result[name].reshape(-1, result[name].shape[-1])


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
) -> None:
    """Write models/calibration/COMPONENT from models/onnx/COMPONENT and the calibration data of params.yaml."""
    component(name)
    params = load().component(name)
    onnx = Path("models/onnx") / name
    (stem,) = artifact.check(onnx)["graphs"]
    seen = observe(onnx / f"{stem}.onnx", params.calibrate, params.inputs)
    width = len(next(iter(seen.values())).absmax)
    bound_to = {"onnx": artifact.fingerprint(onnx), "data": describe(params.inputs, width)}
    facts = {"kind": "calibration", "component": name, "made_from": bound_to}
    with artifact.writing(Path("models/calibration") / name, **facts) as folder:
        arrays = {}
        for key, observation in seen.items():
            arrays[f"{key}/absmax"] = observation.absmax
            arrays[f"{key}/factors"] = observation.factors
            arrays[f"{key}/range"] = np.array([_static_range(observation, params.calibrate)], np.float32)
        save_file(arrays, folder / "calibration.safetensors")
        artifact.write_json(folder / "report.json", {key: _report(o, params.calibrate) for key, o in seen.items()})


def _static_range(observation: Observation, params: CalibrateParams) -> float:
    return observation.histogram.best_range() * params.headroom


def _report(observation: Observation, params: CalibrateParams) -> dict[str, object]:
    """Say what set the ranges: for a person who wonders where an outlier came from."""
    loudest = np.argsort(observation.absmax)[::-1][:8]
    return {
        "absmax": float(observation.absmax.max()),
        "median_channel_absmax": float(np.median(observation.absmax)),
        "loudest_channels": {str(channel): float(observation.absmax[channel]) for channel in loudest},
        "widened_by": [{"batch": batch, "to": to} for batch, to in observation.widened],
        "smoothed_absmax": observation.histogram.absmax,
        "static_range": _static_range(observation, params),
    }


if __name__ == "__main__":
    run_command(app)
