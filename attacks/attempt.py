"""What an attempt is, what it works on, and what is noted of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_omni_onnx import verification
from qwen_omni_onnx.bundle import published
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.confined import ConfinedProcess, Limits, StoppedError
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Attempt", "Outcome", "Target", "mutated", "reseal", "try_mutations", "verify_folder"]

_SECONDS, _GIB = 60.0, 2.0  # what the graphs of an attacked folder may take: far more than small ones that are honest
_TRIAL = Limits(seconds=120, nbytes=4 << 30)  # of a trial, which is to end long before: by itself, or by inner limits


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        kind: ``refused``, with a message; ``accepted``; or ``failed``: a traceback, a crash, or no end.
        said: The message.
    """

    kind: str
    said: str = ""


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    Attributes:
        name: Its name, as on the command line.
        tried: What is tried, in words.
        happens: What happens, in words.
        run: Function that tries it, and returns a line for each trial that gave way.
    """

    name: str
    tried: str
    happens: str
    run: Callable[[Target], list[str]]


@dataclass
class Target:
    """What attempts work on: copies of published folders, in a temporary folder.

    Args:
        models: Folder of the published components, which stays as it is.
        place: Temporary folder.
        mutations: Number of random mutations.
        accepts: Function of a folder, and of seconds that its graphs may take, that raises a :class:`UserError` if the
            folder is not to be used. It runs in a process of its own, and so belongs to a module that can be imported.
        notes: What is worth telling beside the verdict.
    """

    models: Path
    place: Path
    mutations: int
    accepts: Callable[[str, float], object]
    notes: list[str] = field(default_factory=list)
    _process: list[ConfinedProcess] = field(default_factory=list)
    _copies: int = 0

    def copy(self, component: str) -> Path:
        """Return a copy of a published folder, to be broken.

        Raises:
            UserError: There is no such component.
        """
        folders = {str(manifest["component"]): folder for folder, manifest in published(self.models).items()}
        if component not in folders:
            raise UserError(f"{self.models}: no published {component} in it; build all components first")
        self._copies += 1
        copied = self.place / str(self._copies) / component
        shutil.copytree(folders[component], copied)
        return copied

    def try_folder(self, folder: Path, seconds: float = _SECONDS) -> Outcome:
        """Return whether a published folder is accepted, whose graphs may take so many seconds."""
        return self.try_work(self.accepts, str(folder), seconds)

    def try_work(self, work: Callable[..., object], *arguments: Any) -> Outcome:
        """Return what comes of a function of a module of this package, called in a process of its own."""
        if not self._process:
            self._process.append(ConfinedProcess(_TRIAL))
        try:
            self._process[0].call(work, *arguments)
        except UserError as error:
            return Outcome("refused", str(error))
        except StoppedError as error:
            self.end()
            return Outcome("failed", f"it {error}")
        return Outcome("accepted")

    def end(self) -> None:
        """End the process of the trials."""
        while self._process:
            self._process.pop().close()

    def random(self, name: str) -> random.Random:
        """Return a generator that gives the same numbers in every run of an attempt."""
        return random.Random(name)


def verify_folder(folder: str, seconds: float) -> None:
    """Refuse a published folder as ``qwen-omni-onnx verify`` does.

    Raises:
        UserError: It is not as published, or misses a limit.
    """
    for found in verification.verify(folder, max_seconds=seconds, max_gib=_GIB):
        missed = [drift for drift in found.drifts if not drift.ok]
        if missed:
            raise UserError(f"{folder}: {missed[0].verdict.of}: {missed[0].verdict.label} misses its limit")


def reseal(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Write the manifest anew, with changes, so that it names what is there now: a forger can do so, too."""
    manifest = artifact.read_json(folder / artifact.MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": artifact.sha256(folder / name)}
        for name in names
        if name != artifact.MANIFEST
    }
    artifact.write_json(folder / artifact.MANIFEST, {**manifest, "files": files, **(changes or {})})


def try_mutations(target: Target, folder: Path, pick: Callable[[int], Path], generator: random.Random) -> list[str]:
    """Change random bytes of one file after another, each as it was again before the next; return what gave way.

    Args:
        target: What is attacked; it has the number of mutations, and gets a note.
        folder: Copy of a published folder.
        pick: Function of a mutation's number that returns the file.
        generator: Generator of what is changed.
    """
    gave_way = []
    for number in range(target.mutations):
        path = pick(number)
        before = path.read_bytes()
        path.write_bytes(mutated(before, generator))
        outcome = target.try_folder(folder)
        path.write_bytes(before)
        if outcome.kind != "refused":
            gave_way.append(f"{number}: {path.name}: {outcome.kind}: {outcome.said}")
    target.notes.append(f"{target.mutations} mutations, {len(gave_way)} accepted")
    return gave_way


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Return other bytes than these: a changed, lost, added, moved or repeated piece."""
    while True:
        at, length = generator.randrange(len(content)), generator.choice((1, 1, 1, 2, 16, 256))
        found = generator.choice(
            (
                content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :],
                content[:at] + generator.randbytes(length) + content[at + length :],
                content[:at] + content[at + length :],
                content[:at] + generator.randbytes(length) + content[at:],
                content[:at],
                content[:at] + bytes(length) + content[at + length :],
                content + content[at : at + length],
            )
        )
        if found != content:
            return found
