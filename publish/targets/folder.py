"""A folder as the target of a release: on another disk, or on a share."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from publish.targets import File
from qwen_omni_onnx.common import artifact, locks, output
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.swap import swap_in

__all__ = ["Folder"]


class Folder:
    """A folder that releases are put into; see :class:`publish.targets.Target`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: not a folder; give another place for the release")

    def read(self, path: str) -> bytes | None:
        """Return a file that is there; None if there is none."""
        place = self._root / path
        return place.read_bytes() if place.is_file() else None

    def missing(self, files: Mapping[str, File]) -> list[str]:
        """Return the paths of those files that are not there, or are others."""
        return [path for path, file in files.items() if not _is(self._root / path, file)]

    def put(self, files: Mapping[str, File], components: Sequence[str]) -> str:
        """Write every folder beside its place, and then put all in place; see :meth:`publish.targets.Target.put`."""
        folders = sorted({str(PurePosixPath(path).parents[-3]) for path in files if path.count("/") > 1})
        del components  # a folder of another name is the user's to remove: `load` tells that there are two
        with contextlib.ExitStack() as stack:
            ready = []
            for folder in folders:
                place = (self._root / folder).absolute()
                artifact.require_replaceable(place, "published", PurePosixPath(folder).parts[0])
                place.parent.mkdir(parents=True, exist_ok=True)
                room = place.with_name(f".{place.name}.writing")
                stack.enter_context(locks.claimed(room, place))
                stack.enter_context(output.told(place, room))
                locks.empty(room)
                beside = room / place.name
                stack.callback(shutil.rmtree, room / place.name, ignore_errors=True)
                own = {path: file for path, file in files.items() if path.startswith(f"{folder}/")}
                for path, file in own.items():
                    _write(beside / PurePosixPath(path).relative_to(folder), file)
                ready.append((beside, place))
            for beside, place in ready:
                swap_in(beside, place)
        for path, file in files.items():
            if path.count("/") < 2:
                with output.writing(self._root / path) as written:
                    _write(written, file)
        return str(self._root)


def _is(place: Path, file: File) -> bool:
    return place.is_file() and place.stat().st_size == file.nbytes and artifact.sha256(place) == file.sha256


def _write(place: Path, file: File) -> None:
    """Write a file, and wait until it is on the disk."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(file.content, bytes):
        place.write_bytes(file.content)
    else:
        shutil.copyfile(file.content, place)
    place.chmod(0o644)
    output.sync(place)
