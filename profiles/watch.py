"""Watches ``dvc repro``: which stage runs, for how long, and how much memory its processes take together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from omni.resources import peak_bytes

__all__ = ["Ran", "Watch", "caches", "commands", "descendants", "outputs"]

Command = tuple[str, ...]
_PLACE = "${item.component}"


@dataclass
class Ran:
    """What was seen of a stage.

    Attributes:
        seconds: Time that its commands took.
        peak_bytes: Largest resident memory of all its processes at one moment.
    """

    seconds: float
    peak_bytes: int


@dataclass
class Watch:
    """What was seen of all stages that ran.

    Attributes:
        of: Names of stages by the arguments that Python is called with.
        began: Called with the name of a stage when it begins.
        ran: What was seen of each stage so far, by name.
        clock: Returns the time in seconds.
    """

    of: Mapping[Command, str]
    began: Callable[[str], None] = lambda name: None
    ran: dict[str, Ran] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _current: str | None = None
    _seen: dict[tuple[int, str], float] = field(default_factory=dict)

    def look(self, process: psutil.Process) -> None:
        """Look at the descendants of a process once; several times a second, no peak of memory escapes for long."""
        for child in descendants(process):
            with contextlib.suppress(psutil.Error):
                name = self.of.get(tuple(child.cmdline()[1:]))
                if name is not None:
                    self._note(name, child)

    def _note(self, name: str, process: psutil.Process) -> None:
        if name != self._current:
            self._current = name
            self.ran[name] = Ran(0.0, 0)
            self.began(name)
        stage, now = self.ran[name], self.clock()
        began = self._seen.setdefault((process.pid, name), now)
        family = [process, *descendants(process)]
        together = sum(_resident(each) for each in family)
        alone = max((peak_bytes(each.pid) for each in family), default=0)
        stage.peak_bytes = max(stage.peak_bytes, together, alone)
        stage.seconds += now - began
        self._seen[process.pid, name] = now


def commands(file: Path, components: Mapping[str, list[str]]) -> dict[Command, str]:
    """Return the names of a pipeline's stages by the arguments that their commands call Python with, in order.

    Args:
        file: ``dvc.yaml``.
        components: What the matrix of a stage runs over, by the name in ``params.yaml``.
    """
    return {tuple(line.split()[1:]): name for name, lines in _listed(file, components, "cmd") for line in lines}


def outputs(file: Path, components: Mapping[str, list[str]]) -> dict[str, list[Path]]:
    """Return what each of a pipeline's stages hands over, by the stage's name; arguments are those of ``commands``."""
    return {name: [Path(out) for out in outs] for name, outs in _listed(file, components, "outs")}


def caches(file: Path) -> bool:
    """Return whether a pipeline shares artifacts, which DVC's cache then holds a second time."""
    variables = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["vars"]
    return any(flags["cache"] for table in variables for flags in table.values())


def _listed(file: Path, components: Mapping[str, list[str]], key: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of every stage, one for each component of its matrix, with what stands under a key, as a list."""
    stages = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        held = stage[key] if isinstance(stage[key], list) else [stage[key]]
        texts = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in held]  # {path: how it is cached}
        matrix = stage.get("matrix", {}).get("component")
        if matrix is None:
            yield name, texts
            continue
        for component in components[matrix.strip("${}")]:
            yield f"{name}@{component}", [text.replace(_PLACE, component) for text in texts]


def descendants(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield the processes that a process started, and those that they started; none if it has ended."""
    with contextlib.suppress(psutil.Error):
        yield from process.children(recursive=True)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
