"""Quantize one component: ``python -m quantize COMPONENT``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from components import require_own
from omni.component import Component, artifact_path
from omni.inputs import Feeds
from omni.params import ComponentParams, load
from omni.patterns import first_match
from omni.pieces.work import Pool, Workers, open_pool, require_workers
from omni.streamed import save_graph
from quantize.apply import quantize
from quantize.sensitivity.request import Request, gives_logits
from quantize.sources import bound_calibration, bound_codes, importer_of
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
        typer.Option(
            help="With --sensitivity: schemes to try beside the component's, or int8-tensor; for a graph with logits, "
            "the scheme that nodes may widen to, or int8-block."
        ),
    ] = None,
    target_db: Annotated[
        float | None, typer.Option(help="With --sensitivity: propose schemes that reach this SQNR at the output.")
    ] = None,
    target_kl: Annotated[
        float | None,
        typer.Option(
            help="With --sensitivity, for logits: propose nodes to widen until KL divergence, in nats, is this."
        ),
    ] = None,
    target_mb: Annotated[
        float | None,
        typer.Option(
            help="With --sensitivity, for logits: propose nodes to widen within this size in MB of the graph."
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="With a target: write the schemes into params.yaml.")] = False,
    workers: Workers = "1",
) -> None:
    """Write models/quantized/COMPONENT from models/onnx/COMPONENT and models/calibration/COMPONENT.

    Where the scheme is int4-import, what is packed in models/source/COMPONENT is taken over.

    Of a component that stays float32, that artifact holds no graph.
    """
    require_workers(workers)
    request = Request(schemes, target_db, target_kl, target_mb, write=apply)
    _require_goes_together(out, sensitivity, graph, request, workers)
    description = require_own(name)
    params = load().component(name)
    if sensitivity:
        with open_pool(workers) as pool:
            _measure(description, params, graph, request, pool)
        return
    onnx, calibrated = Path("models/onnx") / name, Path("models/calibration") / name
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
                codes = bound_codes(name, stem, settings) if settings.compensation else None
                calibration, importer = bound_calibration(name, stem), importer_of(description, settings)
                model, record[stem] = quantize(onnx / f"{stem}.onnx", settings, calibration, importer, codes)
                models[quantized_stem(stem, settings.scheme)] = model
        graphs += models
        for stem, model in models.items():
            save_graph(model, folder, stem)


def _measure(description: Component, params: ComponentParams, wanted: str | None, request: Request, pool: Pool) -> None:
    """Measure what the nodes of a graph cost, and propose schemes.

    Raises:
        UserError: The component stays float32, or the request does not fit it.
    """
    name = description.name
    if not params.quantize:
        raise UserError(f"{name} stays float32 (its block in params.yaml says quantize: {{}}); nothing to quantize")
    from quantize.sensitivity.rank import rank  # what builds the artifact does without them
    from quantize.sensitivity.widen import widen

    request.require_possible()
    onnx = Path("models/onnx") / name
    contracts = description.contracts(read_config(onnx))
    params.require_graphs(name, contracts)
    stem, contract = _graph(contracts, params, wanted)
    request.require_fits(stem, contract)
    artifact.check(onnx)
    calibration, graph_file, graph = bound_calibration(name, stem), onnx / f"{stem}.onnx", params.graph(stem)
    assert graph.quantize is not None
    if not calibration:
        request.require_calibrated(stem, graph.quantize)
    if gives_logits(contract):
        codes = bound_codes(name, stem, graph.quantize) if graph.quantize.compensation else None
        importer = importer_of(description, graph.quantize)
        build = partial(quantize, graph_file, calibration=calibration, importer=importer, codes=codes)
        others = [Path("models/source") / name] * bool(importer) + [Path("models/compensated") / name] * bool(codes)
        reads = [onnx, *others]
        widen(name, graph, graph_file, contract, build, scheme=request.wider, request=request, reads=reads, pool=pool)
        return
    schemes = request.to_try(calibrated=bool(calibration))
    feeds = Feeds(name, stem) if len(contracts) > 1 else None
    rank(name, graph, graph_file, contract, calibration, feeds=feeds, schemes=schemes, request=request, pool=pool)


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


def _require_goes_together(
    out: Path | None, sensitivity: bool, graph: str | None, request: Request, workers: str
) -> None:
    if request.write and not request.targets:
        raise UserError(
            "--apply: needs --target-db, --target-kl or --target-mb: what the nodes written to params.yaml are to reach"
        )
    if not sensitivity and (graph is not None or request != Request() or workers != "1"):
        raise UserError(
            "--graph, --schemes, --target-db, -kl, -mb, --apply and --workers go with --sensitivity; add it"
        )
    if sensitivity and out is not None:
        raise UserError("--out: --sensitivity writes no graph; leave one of them out")


if __name__ == "__main__":
    run_app(app)
