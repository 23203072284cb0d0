"""What a piece of work is, and the processes that do it.

What takes long is many pieces that know nothing of each other: questions to answer, clips to record, nodes to try. A
:class:`Work` is defined once; a :class:`Pool` does its pieces here, in several processes, or on a cluster. Whoever
takes the results brings them into a fixed order, so that neither the number nor the order of the workers alters a byte.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import typer

from omni.resources import progress
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "WORKERS", "OneProcess", "Place", "Pool", "StageWorkers", "Work", "Workers", "in_order", "open_pool",
    "require_workers",
]  # fmt: skip

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_Piece = TypeVar("_Piece", contravariant=True)
_Result = TypeVar("_Result", covariant=True)

WORKERS = "QWEN_OMNI_WORKERS"  # environment variable: `dvc repro` passes no options on
_CLUSTER = re.compile(r"ray://[^\s/:]+:\d{1,5}")
_METAVAR = "N|ray://HOST:PORT"
_HELP = "Processes that share the work: a number of them here, or those of a Ray cluster."
Workers = Annotated[str, typer.Option(metavar=_METAVAR, help=_HELP)]
StageWorkers = Annotated[str, typer.Option(metavar=_METAVAR, envvar=WORKERS, help=_HELP)]
Place = Callable[[Path], Path]
"""Returns where a process finds a path that its :class:`Work` names; a relative path is found where it says."""


class Work(Protocol[_Piece, _Result]):
    """Work that falls into pieces. It is sent to each process once, pickled."""

    @property
    def needs(self) -> Sequence[Path]:
        """Folders and files that the work reads, with their paths here."""
        ...

    def open(self, place: Place) -> Callable[[_Piece], _Result]:
        """Return a function that does a piece; it is called for many, so that models are opened once a process."""
        ...


class Pool(Protocol):
    """Processes that do pieces."""

    @property
    def size(self) -> int:
        """How many pieces they do at once."""
        ...

    def run(
        self, work: Work[Piece, Result], pieces: Mapping[str, Piece], title: str, take: Callable[[str, Result], None]
    ) -> None:
        """Do every piece, and hand over its name and result as soon as it is done, in any order.

        Args:
            work: The work.
            pieces: What its function is given, by the name that messages call a piece.
            title: What the progress bar says.
            take: Takes a piece's name and its result.

        Raises:
            UserError: A piece cannot be done; the message names it where it was lost with its process.
        """
        ...


class OneProcess:
    """This process: pieces are done one after another."""

    size = 1

    def run(
        self, work: Work[Piece, Result], pieces: Mapping[str, Piece], title: str, take: Callable[[str, Result], None]
    ) -> None:
        """See :class:`Pool`."""
        if not pieces:
            return
        do = work.open(lambda path: path)
        with progress(title, len(pieces)) as advance:
            for name, piece in pieces.items():
                take(name, do(piece))
                advance(1)


def require_workers(workers: str) -> None:
    """Refuse what is no value of ``--workers``; nothing is opened.

    Raises:
        UserError: It is none.
    """
    if not (re.fullmatch(r"[1-9][0-9]{0,2}", workers) or _CLUSTER.fullmatch(workers)):
        raise UserError(f"--workers {workers!r}: give a number of processes, 1 to 999, or ray://HOST:PORT of a cluster")


@contextlib.contextmanager
def open_pool(workers: str) -> Iterator[Pool]:
    """Open the processes that ``--workers`` asks for; they end with the block.

    Args:
        workers: ``1`` for this process, a larger number of processes here, or ``ray://HOST:PORT`` of a Ray cluster.

    Raises:
        UserError: It is none of these, Ray is not installed, or the cluster does not answer.
    """
    require_workers(workers)
    if workers == "1":
        yield OneProcess()
        return
    try:
        from omni.pieces.cluster import open_cluster
    except ImportError as error:
        raise UserError(f"--workers: {error}; install the extra cluster: pip install -e '.[build,cluster]'") from None
    with open_cluster(int(workers) if workers.isdecimal() else workers) as pool:
        yield pool


def in_order(names: Sequence[str], take: Callable[[str, Result], None]) -> Callable[[str, Result], None]:
    """Return a function that takes results in any order, and passes them on in the order of these names.

    Results wait until those before them are there: sums of floats are formed in one order, whoever is done first.
    """
    waiting: dict[str, Result] = {}
    left = list(reversed(names))

    def taken(name: str, result: Result) -> None:
        waiting[name] = result
        while left and left[-1] in waiting:
            following = left.pop()
            take(following, waiting.pop(following))

    return taken
