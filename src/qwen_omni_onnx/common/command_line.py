"""Command lines on typer: a mistake is told in one line, as everywhere else."""

from __future__ import annotations

import typer
from typer.exceptions import TyperException

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import run_command

__all__ = ["run_app"]


def run_app(app: typer.Typer, *, needs_reader: bool = True) -> None:
    """Run a command line, and end the process: see :func:`qwen_omni_onnx.common.errors.run_command`.

    A mistake in the arguments ends it with exit code 2 and one line, where typer would print a box of several.

    Args:
        app: The command line.
        needs_reader: Whether the command is there for what it prints: see ``run_command``.
    """
    run_command(lambda: _run(app), needs_reader=needs_reader)


def _run(app: typer.Typer) -> None:
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        typer.echo(f"error: {one_line(error.format_message())} (--help shows all arguments)", err=True)
        raise SystemExit(error.exit_code) from None
    raise SystemExit(code if isinstance(code, int) else 0)
