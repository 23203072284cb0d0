"""Calibrate a float32 graph's activations: ``python -m calibrate COMPONENT``.

The clips run through the graph with one clip, and one segment of a large graph, in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from safetensors.numpy import save_file

from calibrate.activations import Observation, observe
from calibrate.convolutions import Convolved, observe_convolutions
from components import require_own
from omni.inputs import FOLDER, calibration_inputs
from omni.params import CalibrateParams, load
from omni.patterns import first_match
from omni.pieces.work import StageWorkers, open_pool, require_workers
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Component that is calibrated.")],
    workers: StageWorkers = "1",
) -> None:
    """Write models/calibration/COMPONENT from models/onnx/COMPONENT and models/inputs/COMPONENT."""
    require_workers(workers)
    description, params = require_own(name), load().component(name)
    onnx, inputs = Path("models/onnx") / name, FOLDER / name
    for folder in (onnx, inputs):
        artifact.check(folder)
    contracts = description.contracts(read_config(onnx))
    params.require_graphs(name, contracts)
    bound_to = {"onnx": artifact.fingerprint(onnx), "inputs": artifact.fingerprint(inputs)}
    facts = {"kind": "calibration", "component": name, "made_from": bound_to}
    with open_pool(workers) as pool, artifact.writing(Path("models/calibration") / name, **facts) as folder:
        for stem, contract in contracts.items():
            calibration = first_match(params.calibrate, stem)
            if calibration is not None:
                recordings = calibration_inputs(name, stem, several=len(contracts) > 1)
                observations = observe(onnx / f"{stem}.onnx", contract, calibration, recordings, pool)
                static = calibration.headroom is not None
                convolved = observe_convolutions(onnx / f"{stem}.onnx", contract, recordings, pool) if static else {}
                _save(observations, convolved, calibration, folder / stem)


def _save(
    observations: Mapping[str, Observation], convolved: Mapping[str, Convolved], params: CalibrateParams, folder: Path
) -> None:
    arrays, report = {}, {}
    for key, activation in convolved.items():
        low, high = activation.histogram.best_range()
        span = (low * (params.headroom or 1), high * (params.headroom or 1))
        arrays[f"{key}/absmax"] = activation.absmax
        arrays[f"{key}/factors"] = np.ones_like(activation.absmax)
        arrays[f"{key}/range"] = np.array([max(map(abs, span))], np.float32)
        arrays[f"{key}/span"] = np.array(span, np.float32)
        report[key] = {**_outlier_report(activation), "span": span}
    for key, observation in observations.items():
        arrays[f"{key}/absmax"] = observation.absmax
        arrays[f"{key}/factors"] = observation.factors
        arrays[f"{key}/rms"] = observation.rms
        arrays[f"{key}/run"] = np.array([observation.run], np.int64)
        report[key] = {**report.get(key, {}), **_outlier_report(observation)}
        if observation.shift is not None:
            arrays[f"{key}/shift"] = observation.shift
        if params.headroom is not None:
            static_range = observation.histogram.best_range() * params.headroom
            arrays[f"{key}/range"] = np.array([static_range], np.float32)
            report[key] |= {"changed_absmax": observation.histogram.absmax, "static_range": static_range}
    folder.mkdir()
    save_file(arrays, folder / "calibration.safetensors")
    artifact.write_json(folder / "report.json", report)


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
