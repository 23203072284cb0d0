"""Quantize one component: ``python -m quantize COMPONENT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni import artifact
from omni.component import component
from omni.errors import Problem, run_command
from omni.inputs import describe
from omni.params import load
from omni.streamed import save_graph
from quantize.apply import quantize, read_calibration

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
    out: Annotated[Path | None, typer.Option(help="where to write; models/int8/COMPONENT if not given")] = None,
) -> None:
    """Write models/int8/COMPONENT from models/onnx/COMPONENT and models/calibration/COMPONENT."""
    component(name)
    params = load().component(name)
    onnx, calibrated = Path("models/onnx") / name, Path("models/calibration") / name
    (stem,) = artifact.check(onnx)["graphs"]
    calibration = read_calibration(calibrated, onnx)
    model, done = quantize(onnx / f"{stem}.onnx", params.quantize, calibration)
    (port,) = model.graph.inputs
    if artifact.read_manifest(calibrated)["made_from"]["data"] != describe(params.inputs, int(port.shape[-1])):
        raise Problem(f"{calibrated}: made from other calibration data; run python -m quantize.calibrate {name} again")
    facts = {
        "kind": "int8",
        "component": name,
        "graphs": [f"{stem}_int8"],
        "made_from": {"onnx": artifact.fingerprint(onnx), "calibration": artifact.fingerprint(calibrated)},
        "quantization": done,
    }
    with artifact.writing(out or Path("models/int8") / name, **facts) as folder:
        save_graph(model, folder, f"{stem}_int8")


if __name__ == "__main__":
    run_command(app)
