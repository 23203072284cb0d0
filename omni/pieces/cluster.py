"""Pieces of work on Ray: its scheduler gives them to processes, and its object store carries what they need.

Ray repeats nothing here: a piece whose process or node was lost is handed out again by this module, which names it when
that happens once too often. Ray's own repeats would go on without end where a piece runs out of memory.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

# Before Ray is imported, which reads it then. It reports its use to its makers otherwise.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

import omni
import qwen_omni_onnx
from omni.pieces.node import Handed, Refused, do_piece
from omni.pieces.shipment import Shipment, chunks, node_folder, shipment
from omni.pieces.work import Work
from omni.resources import progress
from qwen_omni_onnx.common.errors import UserError

__all__ = ["ATTEMPTS", "RayPool", "open_cluster"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")

ATTEMPTS = 3  # of a piece whose process or node is lost each time
_AHEAD = 2  # pieces handed out for each that is done at once
_AGAIN = object()  # instead of a result: the piece is to be done again
_POLL = 1.0  # seconds; a signal is heeded in between


@contextlib.contextmanager
def open_cluster(workers: int | str) -> Iterator[RayPool]:
    """Connect to a Ray cluster, or start one of this machine; on leaving, all that this command asked of it is over.

    Args:
        workers: Number of processes on this machine, or ``ray://HOST:PORT``.

    Raises:
        UserError: It does not answer, or has another version of Ray or Python.
    """
    options: dict[str, Any] = {"address": workers}
    if isinstance(workers, int):
        options = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    nodes: list[Path] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _connect(workers, **options)
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray puts its own there
        nodes = [node_folder(node["NodeID"]) for node in ray.nodes()] if isinstance(workers, int) else []
        yield RayPool()
    finally:
        ray.shutdown()
        for folder in nodes:  # on a cluster's, what was sent stays for the next command
            shutil.rmtree(folder, ignore_errors=True)


def _connect(workers: int | str, **options: Any) -> None:
    """Connect to Ray; a busy cluster may need more than the half minute that it gives itself to begin with a client.

    Raises:
        UserError: It does not answer, or not as it should.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, runtime_env=_environment(), **options)
        except Exception as error:  # each part of Ray raises its own: no connection, another version, no place to write
            ray.shutdown()
            if isinstance(error, ConnectionAbortedError) and attempt < ATTEMPTS:
                continue
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # the last one of a traceback
            raise UserError(f"--workers {workers}: Ray: {(lines or [type(error).__name__])[-1][:300]}") from None
        return


class RayPool:
    """The processes of a Ray cluster: as many on each node as it has CPUs, as Ray counts them."""

    @property
    def size(self) -> int:
        """How many pieces the cluster does at once, as it is now: nodes come and go."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(
        self, work: Work[Piece, Result], pieces: Mapping[str, Piece], title: str, take: Callable[[str, Result], None]
    ) -> None:
        """See :class:`omni.pieces.work.Pool`.

        Raises:
            UserError: A piece cannot be done, or was lost with its process or node three times.
        """
        if not pieces:
            return
        handout, lost = _Handout(work), dict.fromkeys(pieces, 0)
        waiting, pending = list(pieces)[::-1], dict[Any, str]()
        try:
            with progress(title, len(pieces)) as advance:
                while waiting or pending:
                    while waiting and len(pending) < _AHEAD * self.size:
                        name = waiting.pop()
                        pending[handout.begin(pieces[name])] = name
                    for one in ray.wait(list(pending), num_returns=1, timeout=_POLL)[0]:
                        name = pending.pop(one)
                        try:
                            result = handout.result(one)
                        except RayError as error:
                            lost[name] += 1
                            _require_may_repeat(title, name, error, lost[name])
                            result = _AGAIN
                        if result is _AGAIN:
                            waiting.append(name)
                        else:
                            take(name, result)
                            advance(1)
        finally:
            for one in pending:
                with contextlib.suppress(Exception):  # a cluster that has gone has stopped its work
                    ray.cancel(one, force=True)


class _Handout:
    """Work in the object store, for whoever does a piece of it.

    What it reads is put there when the first node does not see it, once for all nodes.
    """

    def __init__(self, work: Work[Any, Any]) -> None:
        self._handed = Handed(uuid.uuid4().hex, work, tuple(shipment(path) for path in work.needs))
        self._reference, self._sent = ray.put(self._handed), False

    def begin(self, piece: Any) -> Any:
        """Hand a piece out; return a reference to its result."""
        return _do_piece.remote(self._reference, piece)

    def result(self, reference: Any) -> Any:
        """Return a piece's result, or ``_AGAIN``.

        Raises:
            UserError: It was refused.
            RayError: It failed, or was lost.
        """
        result = ray.get(reference)
        if not isinstance(result, Refused):
            return result
        if result.message:
            raise UserError(result.message)
        if not self._sent:
            self._sent = True
            self._reference = ray.put(replace(self._handed, needs=tuple(map(_sent, self._handed.needs))))
        return _AGAIN


@ray.remote(num_cpus=1, max_retries=0)
def _do_piece(handed: Handed, piece: Any) -> Any:
    node, pieces_at_once = _node()
    return do_piece(handed, piece, node, pieces_at_once, ray.get)


@functools.cache
def _node() -> tuple[str, int]:
    """Return this node's name, and the number of pieces that it does at once."""
    name = ray.get_runtime_context().get_node_id()
    [node] = [found for found in ray.nodes() if found["NodeID"] == name]
    return name, max(1, int(node["Resources"].get("CPU", 1)))


def _sent(one: Shipment) -> Shipment:
    """Put a shipment's bytes into the object store."""
    sent = {name: [ray.put(chunk) for chunk in chunks(one.seen_at / name)] for name in one.files}
    return replace(one, sent=sent)


def _require_may_repeat(title: str, name: str, error: RayError, lost: int) -> None:
    """Refuse to do a piece once more that would fail again.

    Raises:
        UserError: Its process or node was lost once too often, or cannot be set up.
        Exception: It failed by a defect of this project, which keeps its traceback.
    """
    if isinstance(error, RayTaskError):
        raise error
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, RuntimeEnvSetupError):
        raise UserError(f"{title}: a node cannot be set up: {first[:300]}") from None
    if lost >= ATTEMPTS:
        how = "ran out of memory" if isinstance(error, OutOfMemoryError) else f"was lost ({type(error).__name__})"
        raise UserError(f"{title}: {name} {how} {lost} times; last: {first[:200]}") from None


def _environment() -> dict[str, Any]:
    """Return what nodes are sent of this project: its packages, so that they run the same program as this process."""
    root = Path(omni.__file__).parent.parent
    packages = [path.parent for path in root.glob("*/__init__.py") if path.parent.name != "tests"]
    return {
        "py_modules": [*map(str, packages), str(Path(qwen_omni_onnx.__file__).parent)],
        "excludes": ["__pycache__"],
        "env_vars": {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
    }
