"""A repository of the Hugging Face Hub that holds a release, or one of a server with its protocol."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.hub_errors import Advice
from qwen_omni_onnx.common.hub_name import HubName
from qwen_omni_onnx.common.hub_repository import HubFile, HubRepository
from qwen_omni_onnx.sources import SMALL

__all__ = ["Hub"]

_ADVICE = Advice(
    absent="the release is not whole",
    revision="check what follows the @",
    elsewhere="give a folder that holds the release",
    download="get the release from somewhere else",
)


class Hub:
    """A repository at the commit that its revision named when it was opened; see :class:`sources.Source`."""

    def __init__(self, name: HubName) -> None:
        self._repository = HubRepository(name.repository, name.revision, _ADVICE)

    def paths(self) -> list[str]:
        """Return the paths of all files in it."""
        return sorted(self._files)

    def read(self, path: str) -> bytes:
        """Return the content of a small file."""
        nbytes = self._file(path).nbytes
        if nbytes > SMALL:
            raise UserError(f"{one_line(path)}: {nbytes} bytes; {SMALL} is the most that is taken")
        return self._repository.content(path, nbytes)

    def fetch(self, path: str, place: Path, nbytes: int) -> None:
        """Fetch a file from where an earlier call has come to."""
        listed = self._file(path).nbytes
        if listed != nbytes:
            raise UserError(f"{one_line(path)}: {listed} bytes there, {nbytes} were published; do not use it")
        there = place.stat().st_size if place.is_file() else 0
        with place.open("ab") as file:
            self._repository.read(path, there, nbytes, lambda _, block: file.write(block))

    @cached_property
    def _files(self) -> dict[str, HubFile]:
        return self._repository.files()

    def _file(self, path: str) -> HubFile:
        if path not in self._files:
            raise UserError(f"{self._repository.repository}: no {one_line(path)} in it; {_ADVICE.absent}")
        return self._files[path]
