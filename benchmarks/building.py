"""Build a component at any depth, by the project's own stages, in a folder that is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from omni.resources import progress
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError

__all__ = ["ROOT", "built", "run_module", "temporary_folder"]

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def built(
    layers: str, stages: Sequence[tuple[str, str]], change: Callable[[dict[str, Any]], None] = lambda params: None
) -> Iterator[None]:
    """Let the body run in a folder where components are built with that many layers, from synthetic weights.

    Args:
        layers: Number of layers, ``full``, or ``built`` for the current folder with what is built there.
        stages: Module and component of each stage.
        change: Changes the table of ``params.yaml`` in place.

    Raises:
        UserError: ``layers`` is none of these, or a stage failed.
    """
    if layers == "built":
        yield
        return
    if layers != "full" and not (layers.isdecimal() and int(layers)):
        raise UserError(f"--layers: {layers!r} is not allowed: give full, built or a number of layers")
    params = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text(encoding="utf-8"))
    params["model"] |= {"source": "synthetic", "layers": layers if layers == "full" else int(layers)}
    for name in {component for _, component in stages}:
        source = Path(params[name]["inputs"]["source"])
        if source.is_dir():
            params[name]["inputs"]["source"] = str(source.resolve())
    change(params)
    with temporary_folder() as folder:
        with (folder / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(params, file)
        with progress("building", len(stages)) as advance:
            for stage in stages:
                run_module(*stage, folder=folder)
                advance(1)
        with contextlib.chdir(folder):
            yield


def run_module(module: str, *arguments: str, folder: Path) -> None:
    """Run ``python -m module arguments`` in a folder, in a process of its own, whose memory goes with it.

    Args:
        module: Name of the module.
        *arguments: Arguments of the command.
        folder: Current directory of the process.

    Raises:
        UserError: The process failed; the message repeats its last line.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"python -m {module} {' '.join(arguments)}: exit code {done.returncode}: {last}")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder on the disk of ``models/``, which has space for gigabytes; it is gone afterwards."""
    Path("models").mkdir(exist_ok=True)
    with output.temporary_folder(Path("models").resolve()) as folder:
        yield folder
