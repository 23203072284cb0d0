"""Try every attack on copies of published folders: ``python -m attacks [NAME...]``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from attacks import checkpoints, graphs, manifest, signatures, sounds, texts
from attacks.attempt import Attempt, Target, verify_folder
from omni.terminal import print_table
from qwen_omni_onnx.bundle import published
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

__all__ = ["ATTEMPTS", "attempt"]

_MODULES = (manifest, signatures, graphs, texts, sounds, checkpoints)
ATTEMPTS = {found.name: found for module in _MODULES for found in module.ATTEMPTS}
_SHOWN = 3  # trials that gave way, of each attempt
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def attempt(found: Attempt, models: Path, mutations: int) -> tuple[list[str], list[str]]:
    """Try one attack; return what gave way, and notes.

    Args:
        found: The attempt.
        models: Folder of the published components.
        mutations: Number of random mutations.

    Raises:
        UserError: A component is not there.
    """
    with tempfile.TemporaryDirectory(prefix="attacks-") as place:
        target = Target(models, Path(place), mutations, verify_folder)
        try:
            return found.run(target), target.notes
        finally:
            target.end()


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Attempts; all, if none is named.")] = None,
    models: Annotated[Path, typer.Option(help="Folder of the published components.")] = Path("models/published"),
    mutations: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of random mutations.")] = 1_000,
) -> None:
    """Try attacks on copies of published folders, and say which of them held."""
    unknown = [name for name in names or [] if name not in ATTEMPTS]
    if unknown:
        raise UserError(f"no attempt {unknown[0]!r}; there are: {', '.join(ATTEMPTS)}")
    if not models.is_dir() or not published(models):
        raise UserError(f"{models}: nothing published there; give a folder with components, as make repro builds them")
    rows, weak = [], []
    for name in names or ATTEMPTS:
        gave_way, notes = attempt(ATTEMPTS[name], models, mutations)
        rows.append([name, "gave way" if gave_way else "held", "\n".join([*notes, *gave_way[:_SHOWN]])])
        weak += [name] if gave_way else []
    print_table("attacks", ["attempt", "verdict", "notes"], rows)
    if weak:
        raise UserError(f"gave way: {', '.join(weak)}")


if __name__ == "__main__":
    run_app(app)
