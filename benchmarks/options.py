"""The options that benchmarks share: a file for everything that was measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from qwen_omni_onnx.common import output

__all__ = ["JsonFile", "Overwrite", "json_file"]

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="also write everything that was measured to this file")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="with --json: FILE may replace one that is there already")]


def json_file(path: Path | None, *, overwrite: bool, inputs: Iterable[Path] = ()) -> Path | None:
    """Return the file to write, wherever the benchmark works meanwhile; refuse it before minutes of measuring.

    Args:
        path: What ``--json`` says.
        overwrite: What ``--overwrite`` says.
        inputs: What the benchmark reads beside ``params.yaml`` and ``models``.

    Raises:
        UserError: See :func:`qwen_omni_onnx.common.output.require_writable`.
    """
    if path is None:
        return None
    output.require_writable(path, inputs=[Path("params.yaml"), Path("models"), *inputs], overwrite=overwrite)
    return path.resolve()
