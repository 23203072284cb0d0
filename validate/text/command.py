"""The command ``python -m validate text``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import qwen_omni_onnx
from omni.terminal import print_table
from qwen_omni_onnx.common import artifact, output
from validate.text import open_tasks

__all__ = ["run"]


def run(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks of lm-eval, such as mmlu.")],
    models: Annotated[Path, typer.Option(help="Folder with the published Thinker.")] = Path("models/published"),
    float32: Annotated[bool, typer.Option("--float32", help="Run the float32 graph, if it is published.")] = False,
    limit: Annotated[int | None, typer.Option(help="Questions of each task; all without.", min=1)] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder with tasks of your own, in lm-eval's format.")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="File that also gets everything that was found.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let --json replace a FILE that is there already.")
    ] = False,
) -> None:
    """Judge the published Thinker by tasks of EleutherAI's lm-eval; it downloads the data of its own tasks."""
    if json is not None:
        output.require_writable(json, inputs=[Path("params.yaml"), Path("models"), models], overwrite=overwrite)
    wanted = open_tasks(tasks, folder)
    bundle = qwen_omni_onnx.load(models, needed=["thinker"], float32=["thinker"] if float32 else [])
    found = wanted.judge(bundle.thinker, bundle.folders["thinker"], limit)
    _print(found)
    if json is not None:
        artifact.write_json(json, {"models": str(models), "float32": float32, "results": found})


def _print(results: dict[str, dict[str, Any]]) -> None:
    rows = [
        [task, metric.removesuffix(",none"), f"{value:.5g}"]
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "_stderr" not in metric
    ]
    print_table("lm-eval", ["task", "metric", "value"], rows)
