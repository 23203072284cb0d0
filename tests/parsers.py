"""Commands that a page or a workflow gives, parsed by their own parsers, and stopped before anything runs."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import hostile
import pytest
import typer.core
from conftest import ROOT

__all__ = ["parse_make", "parse_module"]

_MAKEFILE = (ROOT / "Makefile").read_text()
_TARGETS, _VARIABLES = (set(re.findall(form, _MAKEFILE, re.M)) for form in (r"^([a-z][\w-]*):", r"^([A-Z_]+) [:?]="))


class Parsed(Exception):
    """A command's parser took its arguments; nothing was run."""


def parse_make(given: list[str]) -> None:
    """Compare the arguments of ``make`` with the targets and the variables of the Makefile."""
    variables = {name for name, equals, _ in (argument.partition("=") for argument in given) if equals}
    assert {argument for argument in given if "=" not in argument} <= _TARGETS
    assert variables <= _VARIABLES


def parse_module(module: str, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module parse its arguments, and stop it there. Brackets around what may be left out are taken off.

    A module without arguments is a command's name, where a page speaks of it.
    """
    file = next(filter(None, map(_source, (f"{module}.__main__", module))))
    if not given or given == ["..."]:
        return
    if not re.search(r"\btyper\b", file.read_text()):
        assert not given, f"{module} takes no arguments"
        return
    if len(given) == 1 and f"{module} {given[0]}" in hostile.commands():  # where a page speaks of one of several
        return

    def invoke(*_: object) -> None:
        raise Parsed

    monkeypatch.setattr(typer.core.TyperCommand, "invoke", invoke)
    monkeypatch.setattr(sys, "argv", [module, *(word.strip("[]").replace("...", "") for word in given)])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__")


def _source(module: str) -> Path | None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(found.origin) if found and found.origin else None
