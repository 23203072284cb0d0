"""Export one component: ``python -m export COMPONENT``."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from export.exporter import Exporter
from omni import artifact
from omni.checkpoint import Checkpoint
from omni.component import component
from omni.errors import run_command
from omni.params import load

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
    source: Annotated[
        Path | None, typer.Option(help="the pulled tensors; models/source/COMPONENT if not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where to write; models/onnx/COMPONENT if not given")] = None,
) -> None:
    """Write models/onnx/COMPONENT from models/source/COMPONENT."""
    part = component(name)
    source = source or Path("models/source") / name
    artifact.check(source)
    checkpoint = Checkpoint(source)
    contracts = part.contracts(checkpoint.config)
    settings = load().component(name).export

    from export.trace import trace  # PyTorch takes seconds to import: only once the inputs are known to be good
    from export.weights import bind
    from omni.streamed import save_graph

    exporter: Exporter = importlib.import_module(part.exporter).EXPORTER
    facts = {"kind": "onnx", "component": name, "made_from": {"source": artifact.fingerprint(source)}}
    with artifact.writing(out or Path("models/onnx") / name, **facts, graphs=sorted(contracts)) as folder:
        for stem, contract in contracts.items():
            traced = exporter.graphs[stem]
            model = trace(partial(traced.build, checkpoint.config, settings), contract)
            model.graph.name = stem
            bind(model, checkpoint, traced, settings)
            save_graph(model, folder, stem)
        for companion in ("config.json", "LICENSE", "source.json", *part.files):
            if (source / companion).is_file():
                (folder / companion).write_bytes((source / companion).read_bytes())
        for file, content in exporter.files(checkpoint.config, settings).items():
            artifact.write_json(folder / file, content)


if __name__ == "__main__":
    run_command(app)
