"""A process of a cluster that does pieces: it sees the files that the work needs, and takes its share of the cores."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omni.pieces.shipment import Absent, Shipment, locate, node_folder
from omni.pieces.work import Work
from qwen_omni_onnx.common import locks
from qwen_omni_onnx.common.cores import core_groups
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Handed", "Refused", "do_piece", "share_of_cores"]

_opened: dict[str, Callable[[Any], Any]] = {}  # by key of the work: the last one alone, models are large
_held: list[IO[bytes]] = []  # the lock of this process's share of the cores, as long as it lives
_folders = contextlib.ExitStack()  # with the folder that this process works in


@dataclass(frozen=True)
class Handed:
    """Work as it is handed to the processes.

    Attributes:
        key: Name that no other work has.
        work: The work.
        needs: What it reads.
    """

    key: str
    work: Work[Any, Any]
    needs: tuple[Shipment, ...]


@dataclass(frozen=True)
class Refused:
    """A piece that was not done.

    Attributes:
        message: Why, in one line; empty: this node does not see what the work needs.
    """

    message: str


def do_piece(handed: Handed, piece: Any, node: str, pieces_at_once: int, fetch: Callable[[Any], bytes]) -> Any:
    """Return what a piece gives, or a :class:`Refused`.

    Args:
        handed: The work.
        piece: The piece.
        node: Name of this node.
        pieces_at_once: Pieces that this node does at once, which share its cores.
        fetch: Returns the bytes behind a reference to the object store.
    """
    try:
        if handed.key not in _opened:
            _opened.clear()
            if not _held:
                _take_cores(node, pieces_at_once)
            _opened[handed.key] = handed.work.open(_placed(handed, node, fetch))
        return _opened[handed.key](piece)
    except Absent:
        return Refused("")
    except UserError as error:
        return Refused(str(error))
    except OSError as error:
        return Refused(f"{error.filename or 'a worker'}: {error.strerror or error}")


def share_of_cores(number: int, shares: int, groups: list[list[int]]) -> set[int]:
    """Return the logical cores of one of so many shares; shares are disjoint while there are as many physical cores.

    Args:
        number: Number of the share.
        shares: Number of shares.
        groups: Logical cores of each physical one.
    """
    own = groups[number::shares] or [groups[number % len(groups)]]
    return {core for group in own for core in group}


def _take_cores(node: str, shares: int) -> None:
    """Bind this process to a share of the node's cores that no other has: sessions take the cores they are given."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for number in range(shares):
        file = (node_folder(node) / f"cores-{number}.lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        os.sched_setaffinity(0, share_of_cores(number, shares, core_groups()))
        return


def _placed(handed: Handed, node: str, fetch: Callable[[Any], bytes]) -> Callable[[Path], Path]:
    """Make a folder in which relative paths lead to what the work needs, go there, and return where paths lead."""
    found = {need.path: locate(need, fetch, node) for need in handed.needs}
    _folders.close()
    here = _folders.enter_context(locks.temporary_folder(node_folder(node)))
    for path, place in found.items():
        if not path.is_absolute() and ".." not in path.parts:
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).symlink_to(place)
            found[path] = path
    os.chdir(here)
    return lambda path: found.get(path, path)
