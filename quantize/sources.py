"""What a graph is quantized from: calibration, compensated codes, packed layers of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omni.checkpoint import Checkpoint
from omni.component import Component
from omni.imported import IMPORT, Importer
from omni.inputs import FOLDER
from omni.params import QuantizeParams
from quantize.apply import Calibration, read_calibration
from quantize.codes import Codes
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["bound_calibration", "bound_codes", "described", "importer_of"]


def importer_of(description: Component, params: QuantizeParams) -> Importer | None:
    """Return the source's packed layers, where a scheme asks for them.

    Raises:
        UserError: the component's source has none to give, is not whole, or is not what was exported.
    """
    name = description.name
    if not params.imports:
        return None
    if description.matrices is None:
        raise UserError(f"{name}: {IMPORT} is for the language models, Thinker and Talker; name another scheme")
    source, onnx = Path("models/source") / name, Path("models/onnx") / name
    artifact.check(source)
    if artifact.read_manifest(onnx)["made_from"]["source"] != artifact.fingerprint(source):
        raise UserError(f"{onnx}: made from another {source}; run python -m export {name} again")
    return Importer(Checkpoint(source), description.matrices)


def bound_calibration(name: str, stem: str) -> dict[str, Calibration]:
    """Read the calibration of one of a component's graphs.

    Raises:
        UserError: it was made from another graph, or from other inputs.
    """
    onnx, calibrated = Path("models/onnx") / name, Path("models/calibration") / name
    calibration = read_calibration(calibrated, onnx, stem)  # empty where no scheme smooths
    if artifact.read_manifest(calibrated)["made_from"]["inputs"] != artifact.fingerprint(FOLDER / name):
        raise UserError(f"{calibrated}: made from other inputs; run python -m calibrate {name} again")
    return calibration


def described(params: QuantizeParams | None) -> dict[str, Any] | None:
    """Return what compensated codes depend on among a graph's parameters, in order; None if it stays float32."""
    if params is None:
        return None
    tables = {name: list(getattr(params, name).items()) for name in ("nodes", "compensation")}
    return json.loads(json.dumps({"scheme": params.scheme, "block": params.block, **tables}))


def bound_codes(name: str, stem: str, params: QuantizeParams) -> Codes:
    """Return the codes of one graph's compensated nodes.

    Raises:
        UserError: They are not whole, or were made from another graph, calibration or inputs, or by other parameters.
    """
    folder = Path("models/compensated") / name
    manifest = artifact.check(folder)
    made_from = manifest["made_from"]
    if manifest["settings"].get(stem) != described(params):
        raise UserError(f"{folder}: made by other parameters; run python -m quantize.compensate {name} again")
    for source in (Path("models/onnx") / name, Path("models/calibration") / name, FOLDER / name):
        if made_from[source.parent.name] != artifact.fingerprint(source):
            raise UserError(f"{folder}: made from another {source}; run python -m quantize.compensate {name} again")
    return Codes(folder / stem)
