"""Runs clips through a graph, and measures activations clip by clip, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from omni.inputs import tokens_of
from omni.pieces.work import OneProcess, Place, Pool, in_order
from omni.resources import progress
from omni.segments import Segments
from qwen_omni_onnx.common.contract import GraphContract

__all__ = ["Measuring", "measure_clips"]

Statistics = TypeVar("Statistics")
Recordings = Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]]
_Share = dict[str, Any]  # recordings of some clips


@dataclass(frozen=True)
class Measuring(Generic[Statistics]):
    """The work of measuring activations: a piece is some clips, and gives each activation's statistics of each clip.

    Attributes:
        graph_file: The graph.
        contract: Its interface.
        names: Names of the activations.
        group: Splits names into groups that are fetched together.
        measure: Returns the statistics of a clip's name, an activation's name and its values [tokens, channels].
        axis: Axis of the channels in the graph. If it is the last one, places that the graph fills up beyond the end
            of a clip are left out.
    """

    graph_file: Path
    contract: GraphContract
    names: tuple[str, ...]
    group: Callable[[list[str]], list[list[str]]]
    measure: Callable[[str, str, np.ndarray], Statistics]
    axis: int = -1

    @property
    def needs(self) -> list[Path]:
        """The graph's folder."""
        return [self.graph_file.parent]

    def open(self, place: Place) -> Callable[[_Share], list[tuple[str, str, Statistics]]]:
        """Return what gives clip, activation and statistics for all of some clips."""
        segments = self.segments(place)

        def run(recordings: _Share) -> list[tuple[str, str, Statistics]]:
            found: list[tuple[str, str, Statistics]] = []
            self.run(segments, recordings, lambda *one: found.append(one), lambda _: None)
            return found

        return run

    def segments(self, place: Place) -> Segments:
        """Return the graph, cut into segments that fit the memory."""
        return Segments(place(self.graph_file.parent) / self.graph_file.name, self.names, self.group)

    def run(
        self,
        segments: Segments,
        recordings: Recordings,
        take: Callable[[str, str, Statistics], None],
        advance: Callable[[int], None],
    ) -> None:
        """Run clips through the graph, and hand over each activation's statistics, for each in the order of the clips.

        Args:
            segments: The graph.
            recordings: Recordings of the first input, or of all inputs, by clip.
            take: Takes clip, activation and statistics.
            advance: Advances the progress bar.
        """

        def show(clip: str, found: Mapping[str, np.ndarray]) -> None:
            for name, array in found.items():
                if self.axis == -1:
                    values = tokens_of(self.contract, recordings, clip, array)
                else:
                    values = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])
                take(clip, name, self.measure(clip, name, values))
            advance(1)

        segments.run(self.contract, recordings, show)


class _Shares(Mapping[str, _Share]):
    """Consecutive clips for each of some processes; they are read when they are handed out."""

    def __init__(self, recordings: Recordings, number: int) -> None:
        clips = list(recordings)
        parts = [clips[len(clips) * one // number : len(clips) * (one + 1) // number] for one in range(number)]
        self._recordings, self._parts = recordings, {f"clips from {part[0]}": part for part in parts if part}

    def __getitem__(self, name: str) -> _Share:
        return {clip: self._recordings[clip] for clip in self._parts[name]}

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def measure_clips(
    work: Measuring[Statistics],
    recordings: Recordings,
    take: Callable[[str, str, Statistics], None],
    title: str,
    pool: Pool,
) -> None:
    """Measure every clip, and hand over statistics: for each activation in the order of the clips, whoever measures.

    Args:
        work: What is measured.
        recordings: Recordings of the first input, or of all inputs, by clip.
        take: Takes clip, activation and statistics.
        title: What the progress bar says.
        pool: Processes that share the work: each takes consecutive clips, and opens the graph's segments once.
    """
    if isinstance(pool, OneProcess):  # nothing is kept: all statistics of all clips together may take gigabytes
        segments = work.segments(lambda path: path)
        with progress(title, segments.sessions * len(recordings)) as advance:
            work.run(segments, recordings, take, advance)
        return
    shares = _Shares(recordings, pool.size)

    def taken(_: str, found: list[tuple[str, str, Statistics]]) -> None:
        for one in found:
            take(*one)

    pool.run(work, shares, title, in_order(list(shares), taken))
