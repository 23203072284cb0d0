"""Export one component: ``python -m export COMPONENT``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
import typer

from components import require_own
from export.exporter import Constructed, Traced
from omni import build_memory
from omni.checkpoint import Checkpoint
from omni.component import Component, artifact_path
from omni.params import ComponentParams, ExportParams, QuantizeParams, load
from omni.resources import peak_bytes
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_stem

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

    With --quantized, a decoder gets the schemes that params.yaml gives it in one pass over its weights, where the
    float32 graph that the pipeline measures first would take four times the checkpoint's disk. Weights are rounded to
    the nearest code: without that graph, nothing can be calibrated.
    """
    libraries = _export(require_own(name), source, out, quantized)
    if out is None:
        build_memory.record(name, "export", artifact_path("onnx", name), libraries)


def _export(description: Component, source: Path | None, out: Path | None, quantized: bool) -> int:
    """Export a component; return the peak of memory before its work began, in bytes."""
    name = description.name
    how = _quantized(description, load().component(name), out) if quantized else None
    source, out = source or Path("models/source") / name, out or artifact_path("onnx", name)
    artifact.require_replaceable(out, "onnx", name)
    artifact.check(source)
    checkpoint = Checkpoint(source)
    contracts = description.contracts(checkpoint.config)
    settings = load().component(name).export

    # PyTorch takes seconds to import: only where something is traced, and once the inputs are known to be good.
    if not description.constructed:
        import onnxscript  # noqa: F401 - the first graph that is traced would import it, and count it as its own memory
        import torch.onnx  # noqa: F401

        import export.trace
        import export.weights  # noqa: F401
    from export.exporters import exporter as exporter_of
    from omni.stored import narrow
    from omni.streamed import save_graph

    exporter = exporter_of(name)
    libraries = peak_bytes()
    facts = {"kind": "onnx", "component": name, "made_from": {"source": artifact.fingerprint(source)}}
    stems = {stem: quantized_stem(stem, how.scheme) if how else stem for stem in contracts}
    graphs = sorted(stems.values())
    with artifact.writing(out, **facts, graphs=graphs) as folder:
        for stem, contract in contracts.items():
            made = exporter.graph(stem)
            if isinstance(made, Constructed):
                model = made.build(checkpoint, how)
                made.beside(checkpoint, folder)
            else:
                model = _traced(stem, made, contract, checkpoint, settings)
            if settings and settings.store == "checkpoint":
                narrow(model.graph)
            save_graph(model, folder, stems[stem])
        for companion in ("config.json", "LICENSE", "source.json", *description.files):
            if (source / companion).is_file():
                (folder / companion).write_bytes((source / companion).read_bytes())
        for file, content in exporter.files(checkpoint.config, settings).items():
            artifact.write_json(folder / file, content)
    return libraries


def _quantized(description: Component, params: ComponentParams, out: Path | None) -> QuantizeParams:
    name = description.name
    if not description.constructed or not params.quantize:
        raise UserError(f"--quantized: {name} is quantized by python -m quantize {name}, after its export")
    usual = artifact_path("onnx", name)
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
