"""Every command of the project with its arguments, as typer knows them, so that none can be forgotten."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from conftest import ROOT

__all__ = ["Argument", "Command", "commands"]

_STARTS = re.compile(r'^if __name__ == "__main__":\n    run_(command|app)\(', re.MULTILINE)
# Started by another command, in a process of its own, with what that one has checked.
_WORKERS = {"benchmarks.decoder.bench", "benchmarks.token2wav.workers"}
_KINDS: dict[Any, str] = {str: "text", Path: "file", int: "int", float: "float", bool: "flag", None: "text"}


@dataclass(frozen=True)
class Argument:
    """An argument of a command.

    Attributes:
        name: With its dashes if it is given by name.
        kind: flag, int, float, file or text.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Command:
    """A command: ``python -m`` a module, and a word after it where the module has several."""

    module: str
    word: str
    arguments: tuple[Argument, ...]

    @property
    def name(self) -> str:
        return f"{self.module} {self.word}".rstrip()


def commands() -> dict[str, Command]:
    """Return every command by its name."""
    found = [command for module in _modules() for command in _commands(module)]
    return {command.name: command for command in found}


def _modules() -> list[str]:
    """Return the modules that start a command."""
    found = set()
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0].startswith(".") or parts[0] in ("tests", "build", "models"):
            continue
        if _STARTS.search(path.read_text(encoding="utf-8")):
            found.add(".".join(parts).removeprefix("src.").removesuffix(".__main__"))
    return sorted(found - _WORKERS)


def _commands(module: str) -> list[Command]:
    found = importlib.util.find_spec(module)
    package = found is not None and found.submodule_search_locations is not None
    imported = importlib.import_module(f"{module}.__main__" if package else module)
    typed = typer.main.get_command(imported.app)
    several: dict[str, Any] = getattr(typed, "commands", {"": typed})
    return [Command(module, word, tuple(map(_of_typer, one.params))) for word, one in several.items()]


def _of_typer(given: Any) -> Argument:
    kind = given.type_descriptor.annotation
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    kind = str if get_origin(kind) is Literal else kind  # one of several words
    return Argument(given.opts[-1] if given.param_type_name == "option" else given.name, _KINDS[kind])
