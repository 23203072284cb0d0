"""Speech in, speech out: ``qwen-omni-onnx speak|listen|vocode|pull|verify``, which is ``python -m qwen_omni_onnx``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.exceptions import TyperException

from qwen_omni_onnx import __version__
from qwen_omni_onnx.commands.listen import listen
from qwen_omni_onnx.commands.pull import pull
from qwen_omni_onnx.commands.speak import speak
from qwen_omni_onnx.commands.verify import verify
from qwen_omni_onnx.commands.vocode import vocode
from qwen_omni_onnx.common.command_line import run_app

__all__ = ["app", "run"]

_USE = "a command comes first, as in: qwen-omni-onnx speak [IN.wav] OUT.wav"


class _Commands(TyperGroup):
    """The group of commands; what is none of them, a file or an option, is answered with how to use them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            error.message = f"{error.message.rstrip('.')}; {_USE}"
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except TyperException as error:
            error.message = f"{error.message.rstrip('.?')}; {_USE}"
            raise


class _Command(TyperCommand):
    """A command whose usage names the arguments as their help does."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [parameter for parameter in self.params if isinstance(parameter, TyperArgument)]
        return ["[OPTIONS]", *(argument.display_name_raw for argument in arguments)]


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False)
for _command in (speak, listen, vocode, pull, verify):
    app.command(cls=_Command)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qwen-omni-onnx {__version__}")
        raise typer.Exit


@app.callback()
def group(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Qwen2.5-Omni's speech path in ONNX Runtime: reply with speech, and the steps on the way one by one."""


def run() -> None:
    """Run as the console script ``qwen-omni-onnx``."""
    run_app(app, needs_reader=False)


if __name__ == "__main__":
    run_app(app, needs_reader=False)
