"""Recordings that go through the float32 graphs of a component, clip by clip, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from components import component
from inputs.dialogue import logits_of, speaking_recording
from omni.inputs import Recording, feed_whole
from omni.pieces.work import OneProcess, Place, Pool, Work
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.runtime import GoldenRuntime
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.runtimes import DECODERS, SEVERAL_GRAPHS

__all__ = ["RecordFeeds", "Through", "clip_by_clip"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_Feeds = dict[str, dict[str, np.ndarray]]  # by graph, and by clip, moment and input


@dataclass(frozen=True)
class Through:
    """The work of running recordings of a component through its graphs.

    Attributes:
        name: Name of the component.
        gives: ``output``: the graph's first output; ``logits``: those of a decoder's every token; ``spoken``: what the
            Talker is fed while it says what it is told.
        threads: Intra-op threads of a session; 0 lets ONNX Runtime choose.
    """

    name: str
    gives: Literal["output", "logits", "spoken"]
    threads: int

    @property
    def needs(self) -> list[Path]:
        """The component's graphs."""
        return [_onnx(self.name)]

    def open(self, place: Place) -> Callable[[Recording], Recording]:
        """Return what a recording becomes."""
        if self.gives == "output":
            folder = place(_onnx(self.name))
            stem, contract = component(self.name).graph(read_config(folder))
            session = open_session(folder / f"{stem}.onnx", threads=self.threads)
            return lambda one: one._replace(array=next(iter(run(session, feed_whole(contract, one.array)).values()))[0])
        model = _opened(DECODERS[self.name], self.name, place, self.threads)
        through = logits_of if self.gives == "logits" else speaking_recording
        return lambda one: through(model, one)


@dataclass(frozen=True)
class RecordFeeds:
    """The work of recording what each graph of a component sees, while clips run through all of them.

    Attributes:
        name: Name of the component.
        stems: Graphs whose inputs are recorded.
        threads: Intra-op threads of a session; 0 lets ONNX Runtime choose.
    """

    name: str
    stems: tuple[str, ...]
    threads: int

    @property
    def needs(self) -> list[Path]:
        """The component's graphs."""
        return [_onnx(self.name)]

    def open(self, place: Place) -> Callable[[tuple[int, Recording]], _Feeds]:
        """Return what gives each graph's inputs, of a clip's number, which seeds its noise, and its recording."""
        runtime, onnx = SEVERAL_GRAPHS[self.name], place(_onnx(self.name))
        contract = component(self.name).interface(read_config(onnx))
        model = _opened(runtime, self.name, place, self.threads)

        def feeds(numbered: tuple[int, Recording]) -> _Feeds:
            number, recording = numbered
            ports = runtime.complete(feed_whole(contract, recording.array), onnx, contract, number)
            found: _Feeds = {stem: {} for stem in self.stems}
            for stem, moment, feed in runtime.feeds(model, ports):
                if stem in found:
                    found[stem] |= {f"{recording.name}.{moment}/{port}": array for port, array in feed.items()}
            return found

        return feeds


def clip_by_clip(
    work: Work[Piece, Result], pieces: Iterable[Piece], names: Sequence[str], title: str, pool: Pool
) -> Iterator[Result]:
    """Yield what pieces become, in their order; in one process each is done when it is asked for.

    Args:
        work: What is done to them.
        pieces: One for each clip.
        names: Names of the clips, which messages call them by.
        title: What the progress bar says.
        pool: Processes that share the work.
    """
    if isinstance(pool, OneProcess):
        do = work.open(lambda path: path)
        yield from map(do, pieces)
        return
    numbered = {f"{number} {name}": piece for number, (name, piece) in enumerate(zip(names, pieces, strict=True))}
    done: dict[str, Result] = {}
    pool.run(work, numbered, title, done.__setitem__)
    yield from (done[name] for name in numbered)


def _opened(runtime: GoldenRuntime, name: str, place: Place, threads: int) -> Any:
    """Return a component's run-time, opened on its float32 graphs."""
    folder = place(_onnx(name))
    graphs = {stem: folder / f"{stem}.onnx" for stem in component(name).contracts(read_config(folder))}
    return runtime.open_graphs(graphs, folder, threads)


def _onnx(name: str) -> Path:
    return Path("models/onnx") / name
