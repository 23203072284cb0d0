"""Export one component: ``python -m export COMPONENT``."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
import typer

from export.exporter import Constructed, Exporter, Traced
from omni import export_memory
from omni.checkpoint import Checkpoint
from omni.command_line import run_app
from omni.component import Component, artifact_path, component
from omni.params import ComponentParams, ExportParams, QuantizeParams, load
from omni.resources import peak_bytes
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_stem

_TRACING = ("export.trace", "export.weights", "onnxscript", "torch.onnx")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
    source: Annotated[
        Path | None, typer.Option(help="the pulled tensors; models/source/COMPONENT if not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where to write; models/onnx/COMPONENT if not given")] = None,
    quantized: Annotated[
        bool,
        typer.Option("--quantized", help="of a decoder, with --out: quantize on the way; no stage checks the result"),
    ] = False,
) -> None:
    """Write models/onnx/COMPONENT from models/source/COMPONENT, and what memory that took to reports/COMPONENT.

    Of a component that is composed of others: models/composed/onnx/COMPONENT, from their models/onnx.

    With --quantized, a decoder becomes what params.yaml says of it in one pass over its weights, where the float32
    graph that the pipeline measures first would take four times the checkpoint's disk.
    """
    part = component(name)
    if part.composed_of:
        if source or quantized:
            raise UserError(f"--source, --quantized: {name} is composed of graphs under models/; leave them out")
        composing = importlib.import_module(part.exporter)
        libraries = peak_bytes()
        composing.export(load().whole(name), out)
    else:
        libraries = _export(part, source, out, quantized)
    if out is None:
        export_memory.record(name, artifact_path("onnx", name), libraries)


def _export(part: Component, source: Path | None, out: Path | None, quantized: bool) -> int:
    """Export a component that has tensors of its own; return the peak of memory before its work began, in bytes."""
    name = part.name
    how = _quantized(part, load().component(name), out) if quantized else None
    source, out = source or Path("models/source") / name, out or artifact_path("onnx", name)
    artifact.require_replaceable(out, "onnx", name)
    artifact.check(source)
    checkpoint = Checkpoint(source)
    contracts = part.contracts(checkpoint.config)
    settings = load().component(name).export

    # PyTorch, which these import, takes seconds: only once the inputs are known to be good.
    from omni.streamed import save_graph

    for module in () if part.constructed else _TRACING:
        importlib.import_module(module)
    exporter: Exporter = importlib.import_module(part.exporter).EXPORTER
    libraries = peak_bytes()
    facts = {"kind": "onnx", "component": name, "made_from": {"source": artifact.fingerprint(source)}}
    stems = {stem: quantized_stem(stem, how.scheme) if how else stem for stem in contracts}
    graphs = sorted(stems.values())
    with artifact.writing(out, **facts, graphs=graphs) as folder:
        for stem, contract in contracts.items():
            made = exporter.graph(stem)
            if isinstance(made, Constructed):
                save_graph(made.build(checkpoint, how), folder, stems[stem])
                made.beside(checkpoint, folder)
            else:
                save_graph(_traced(stem, made, contract, checkpoint, settings), folder, stem)
        for companion in ("config.json", "LICENSE", "source.json", *part.files):
            if (source / companion).is_file():
                (folder / companion).write_bytes((source / companion).read_bytes())
        for file, content in exporter.files(checkpoint.config, settings).items():
            artifact.write_json(folder / file, content)
    return libraries


def _quantized(part: Component, params: ComponentParams, out: Path | None) -> QuantizeParams:
    if not part.constructed or not params.quantize:
        raise UserError(f"--quantized: {part.name} is quantized by python -m quantize {part.name}, after its export")
    usual = artifact_path("onnx", part.name)
    if out is None or out.resolve() == usual.resolve():
        raise UserError(f"--quantized: needs --out, another folder than {usual}, where the float32 graph belongs")
    (quantize,) = params.quantize.values()  # a decoder has one graph
    return quantize


def _traced(
    stem: str, traced: Traced, contract: GraphContract, checkpoint: Checkpoint, settings: ExportParams | None
) -> ir.Model:
    from export.trace import trace
    from export.weights import bind

    model = trace(partial(traced.build, checkpoint.config, settings), contract)
    model.graph.name = stem
    bind(model, checkpoint, traced, settings)
    return model


if __name__ == "__main__":
    run_app(app)
