"""One graph, run on several inputs at once.

Inside one run, threads wait for each other after every node, and some operators know one thread only: two threads may
give no more than 1.2 times the speed of one. Where work falls into pieces, runs of few threads side by side use the
cores better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import onnxruntime as ort

from qwen_omni_onnx.common.cores import usable_cores
from qwen_omni_onnx.common.session import open_session, run

__all__ = ["ParallelGraph"]


class ParallelGraph:
    """A graph of which up to ``at_once`` runs go on side by side, each on its share of the threads.

    Runs of one thread share a session. Those of more have one each, because threads of a session are shared by its
    runs, which slows both down: weights are then in memory as often.

    Args:
        graph: File of the graph.
        threads: Threads of all runs together; 0 takes one for each physical core.
        at_once: Most runs that shall go on side by side; None: as many as threads.

    Raises:
        UserError: The graph does not load.
    """

    def __init__(self, graph: Path, threads: int = 0, at_once: int | None = None) -> None:
        threads = threads or usable_cores()
        self.at_once = min(threads, at_once or threads)
        each = -(-threads // self.at_once)
        # Other graphs take turns with this one: threads that spin after a run would slow them down.
        sessions = [
            open_session(graph, threads=each, stop_spinning=True, low_memory=True)
            for _ in range(1 if each == 1 else self.at_once)
        ]
        self.inputs = [port.name for port in sessions[0].get_inputs()]
        self._free: SimpleQueue[ort.InferenceSession] = SimpleQueue()
        for session in sessions if each > 1 else sessions * self.at_once:
            self._free.put(session)
        self._workers = ThreadPoolExecutor(self.at_once)

    def run(self, feeds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run on each of the inputs; return their outputs by name, in the same order.

        Raises:
            UserError: Inputs do not fit the graph, or an operator failed.
        """
        return list(self._workers.map(self._run, feeds))

    def _run(self, fed: Mapping[str, Any]) -> dict[str, Any]:
        session = self._free.get()
        try:
            return run(session, fed)
        finally:
            self._free.put(session)
