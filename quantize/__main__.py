"""Quantize one component: ``python -m quantize COMPONENT``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from components import require_own
from omni.checkpoint import Checkpoint
from omni.component import Component, artifact_path
from omni.imported import IMPORT, Importer
from omni.inputs import FOLDER, Feeds
from omni.params import ComponentParams, QuantizeParams, load
from omni.patterns import first_match
from omni.streamed import save_graph
from quantize.apply import Calibration, quantize, read_calibration
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_stem

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Component to quantize.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; models/quantized/COMPONENT if not given.")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Write no graph; measure what each node's quantization costs.")
    ] = False,
    graph: Annotated[
        str | None, typer.Option(help="With --sensitivity: the graph, of a component that has several.")
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(help="With --sensitivity: schemes to try beside the component's; or int8-tensor."),
    ] = None,
    target_db: Annotated[
        float | None, typer.Option(help="With --sensitivity: propose schemes that reach this SQNR at the output.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="With --target-db: write them into params.yaml.")] = False,
) -> None:
    """Write models/quantized/COMPONENT from models/onnx/COMPONENT and models/calibration/COMPONENT.

    Where the scheme is int4-import, what is packed in models/source/COMPONENT is taken over.

    Of a component that stays float32, that artifact holds no graph.
    """
    _require_goes_together(out, sensitivity, graph if schemes is None else schemes, target_db, apply)
    description = require_own(name)
    params = load().component(name)
    onnx, calibrated = Path("models/onnx") / name, Path("models/calibration") / name
    if sensitivity:
        if not params.quantize:
            raise UserError(f"{name} stays float32 (its block in params.yaml says quantize: {{}}); nothing to quantize")
        from quantize.sensitivity.rank import rank, require_possible  # what builds the artifact does without it

        require_possible(schemes, target_db)
        contracts = description.contracts(read_config(onnx))
        params.require_graphs(name, contracts)
        stem, contract = _graph(contracts, params, graph)
        artifact.check(onnx)
        calibration, graph_file = _calibration(name, stem), onnx / f"{stem}.onnx"
        rank(
            name,
            params.graph(stem),
            graph_file,
            contract,
            calibration,
            feeds=Feeds(name, stem) if len(contracts) > 1 else None,
            schemes=schemes,
            target_db=target_db,
            write=apply,
        )
        return
    out = out or artifact_path("quantized", name)
    artifact.require_replaceable(out, "quantized", name)
    artifact.check(onnx)
    contracts = description.contracts(read_config(onnx))
    params.require_graphs(name, contracts)
    facts = {
        "kind": "quantized",
        "component": name,
        "made_from": {"onnx": artifact.fingerprint(onnx), "calibration": artifact.fingerprint(calibrated)},
    }
    graphs: list[str] = []
    record: dict[str, dict[str, dict[str, Any]]] = {}
    with artifact.writing(out, **facts, graphs=graphs, quantization=record) as folder:
        models = {}
        for stem in contracts:
            settings = first_match(params.quantize, stem)
            if settings is not None:
                importer = _importer(description, settings)
                model, record[stem] = quantize(onnx / f"{stem}.onnx", settings, _calibration(name, stem), importer)
                models[quantized_stem(stem, settings.scheme)] = model
        graphs += models
        for stem, model in models.items():
            save_graph(model, folder, stem)


def _graph(
    contracts: Mapping[str, GraphContract], params: ComponentParams, wanted: str | None
) -> tuple[str, GraphContract]:
    """Return stem and interface of the graph that is asked for, or of the only one that is quantized.

    Raises:
        UserError: none is asked for where there are several, or one that is not quantized.
    """
    quantized = [stem for stem in contracts if first_match(params.quantize, stem)]
    chosen = quantized[0] if wanted is None and len(quantized) == 1 else wanted
    if chosen not in quantized:
        fault = "several graphs are quantized" if wanted is None else f"{wanted!r} is not quantized"
        raise UserError(f"--graph: {fault}; give one of {', '.join(quantized)}")
    return chosen, contracts[chosen]


def _importer(description: Component, params: QuantizeParams) -> Importer | None:
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


def _calibration(name: str, stem: str) -> dict[str, Calibration]:
    """Read the calibration of one of a component's graphs.

    Raises:
        UserError: it was made from another graph, or from other inputs.
    """
    onnx, calibrated = Path("models/onnx") / name, Path("models/calibration") / name
    calibration = read_calibration(calibrated, onnx, stem)  # empty where no scheme smooths
    if artifact.read_manifest(calibrated)["made_from"]["inputs"] != artifact.fingerprint(FOLDER / name):
        raise UserError(f"{calibrated}: made from other inputs; run python -m calibrate {name} again")
    return calibration


def _require_goes_together(
    out: Path | None, sensitivity: bool, details: str | None, target_db: float | None, apply: bool
) -> None:
    if apply and target_db is None:
        raise UserError("--apply: needs --target-db, the SQNR that the nodes written to params.yaml are to reach")
    if not sensitivity and (details is not None or target_db is not None):
        raise UserError("--graph, --schemes, --target-db and --apply go with --sensitivity; add it")
    if sensitivity and out is not None:
        raise UserError("--out: --sensitivity writes no graph; leave one of them out")


if __name__ == "__main__":
    run_app(app)
