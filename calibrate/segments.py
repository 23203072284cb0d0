"""Show what a graph computes on the way, clip by clip, with no more of its weights in memory than there is room for.

A graph of more weights is cut into segments: consecutive nodes, each with at most ``SEGMENT_BYTES`` of them. All clips
go through one segment before the next one is opened; what later ones read is kept on disk until then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass
from safetensors import safe_open
from safetensors.numpy import save_file

from omni.inputs import Feeds, feed_whole
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.session import open_session, run

__all__ = ["SEGMENT_BYTES", "Segments"]

SEGMENT_BYTES = 2 * 2**30  # two layers of the Thinker; what else a session takes is little beside it


@dataclass
class _Segment:
    """Consecutive nodes of a graph.

    Attributes:
        fed: inputs of the graph that they read.
        reads: what they read that earlier segments make, and the number of that segment.
        keeps: what they make that later segments read.
        spent: numbers of the segments of which nothing is read after this one.
        groups: of names of values to show, each for a session of its own; an empty one, where values are only kept.
    """

    fed: set[str] = field(default_factory=set)
    reads: dict[str, int] = field(default_factory=dict)
    keeps: set[str] = field(default_factory=set)
    spent: list[int] = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)


class Segments:
    """A graph and the values that it is to show, in segments; of no more weights than ``SEGMENT_BYTES``, it is one.

    Args:
        graph_file: with external data.
        names: of the values, inputs of the graph or what nodes make.
        group: cuts names into groups that are fetched together.

    Attributes:
        sessions: that each clip runs through.
    """

    def __init__(self, graph_file: Path, names: Iterable[str], group: Callable[[list[str]], list[list[str]]]) -> None:
        graph, names = ir.load(graph_file).graph, list(names)
        self._graph_file = graph_file
        self._inputs = {str(value.name) for value in graph.inputs}
        self._whole = _bytes(graph.initializers.values()) <= SEGMENT_BYTES
        self._segments: list[_Segment] = []
        if names:
            self._segments, made = ([_Segment()], {}) if self._whole else _cut(graph, set(names))
            for number, segment in enumerate(self._segments):
                here = [name for name in names if made.get(name, 0) == number]
                segment.groups = group(here) if here else [[]]
        self.sessions = sum(len(segment.groups) for segment in self._segments)

    def run(
        self,
        contract: GraphContract,
        recordings: Mapping[str, np.ndarray] | Feeds,
        show: Callable[[str, Mapping[str, np.ndarray]], None],
    ) -> None:
        """Run every clip through the graph.

        Args:
            contract: of the graph.
            recordings: of its first input, or of all its inputs, by clip.
            show: is called with the clip and a group's values by name: for all clips, then for those of the next group.
        """
        with output.temporary_folder() as folder:
            kept = _Kept(folder)
            for number, segment in enumerate(self._segments):
                keeps = segment.keeps
                for names in segment.groups:
                    session = self._open(segment, {*names, *keeps} - self._inputs, kept)
                    for place, clip in enumerate(recordings):
                        values = {**feed_whole(contract, recordings[clip]), **kept.read(segment.reads, place)}
                        if session is not None:
                            fed = values if self._whole else {name: values[name] for name in _read(segment)}
                            values |= run(session, fed)
                        kept.write(number, place, {name: values[name] for name in keeps})
                        show(clip, {name: values[name] for name in names})
                    del session  # before the next one is opened
                    keeps = set()  # once will do
                kept.drop(segment.spent)

    def _open(self, segment: _Segment, outputs: set[str], kept: _Kept) -> ort.InferenceSession | None:
        """Open a segment with these outputs. Without any, there is none."""
        if not outputs:
            return None
        model = ir.load(self._graph_file)
        if self._whole:
            made = [value for node in model.graph for value in node.outputs if value.name in outputs]
            model.graph.outputs.clear()
            model.graph.outputs.extend(made)
            RemoveUnusedNodesPass()(model)  # what comes after the last of them takes time for nothing
        else:
            graph = ir.convenience.extract(model.graph, sorted(_read(segment)), sorted(outputs))
            for value in graph.inputs:
                if value.name in segment.reads:
                    value.type = ir.TensorType(ir.DataType.from_numpy(kept.dtypes[value.name]))
            model = ir.Model(graph, ir_version=model.ir_version)
        return open_session(ir.to_proto(model).SerializeToString(), data_folder=self._graph_file.parent)


class _Kept:
    """What segments keep for later ones: a folder for each, and in it a file for each clip.

    Attributes:
        dtypes: of the values by name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.dtypes: dict[str, np.dtype] = {}

    def write(self, segment: int, clip: int, values: Mapping[str, np.ndarray]) -> None:
        if values:
            file = self._file(segment, clip)
            file.parent.mkdir(exist_ok=True)
            save_file(dict(values), file)
            self.dtypes |= {name: array.dtype for name, array in values.items()}

    def read(self, reads: Mapping[str, int], clip: int) -> dict[str, np.ndarray]:
        found = {}
        for name, segment in reads.items():
            with safe_open(self._file(segment, clip), "numpy") as file:
                found[name] = file.get_tensor(name)
        return found

    def drop(self, segments: Iterable[int]) -> None:
        for segment in segments:
            shutil.rmtree(self._file(segment, 0).parent)

    def _file(self, segment: int, clip: int) -> Path:
        return self._folder / str(segment) / f"{clip}.safetensors"


def _cut(graph: ir.Graph, wanted: set[str]) -> tuple[list[_Segment], dict[str, int]]:
    """Cut the nodes that the wanted values follow from; return the segments, and which one makes each value."""
    behind = _weights_behind(graph)
    segments, made = [_Segment()], dict[str, int]()
    held: frozenset[ir.Value] = frozenset()
    for node in _needed(graph, wanted):
        read = [value for value in node.inputs if value is not None]
        weights = frozenset[ir.Value]().union(*(behind.get(value, ()) for value in read))
        if held and _bytes(held | weights) > SEGMENT_BYTES:
            segments.append(_Segment())
            held = frozenset()
        held |= weights
        number = len(segments) - 1
        for value in read:
            name = str(value.name)
            if value.is_graph_input():
                segments[number].fed.add(name)
            elif value not in behind and made[name] < number:
                segments[number].reads[name] = made[name]
                segments[made[name]].keeps.add(name)
        made |= {str(value.name): number for value in node.outputs}
    last_reader = {maker: number for number, segment in enumerate(segments) for maker in segment.reads.values()}
    for maker, number in last_reader.items():
        segments[number].spent.append(maker)
    return segments, made


def _needed(graph: ir.Graph, wanted: set[str]) -> list[ir.Node]:
    """Return the nodes that the wanted values follow from, in order."""
    nodes: list[ir.Node] = []
    read: set[ir.Value | None] = set()
    for node in reversed(graph):
        if any(value.name in wanted or value in read for value in node.outputs):
            nodes.append(node)
            read.update(node.inputs)
    return nodes[::-1]


def _weights_behind(graph: ir.Graph) -> dict[ir.Value, frozenset[ir.Value]]:
    """Return the values that no input can alter, and the weights that each follows from.

    They are computed anew in each segment: ONNX Runtime fuses by constants, and some operators take nothing else.
    """
    behind: dict[ir.Value, frozenset[ir.Value]] = {value: frozenset([value]) for value in graph.initializers.values()}
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if all(value in behind for value in read):
            behind |= dict.fromkeys(node.outputs, frozenset[ir.Value]().union(*(behind[value] for value in read)))
    return behind


def _read(segment: _Segment) -> set[str]:
    return {*segment.fed, *segment.reads}


def _bytes(weights: Iterable[ir.Value]) -> int:
    return sum(value.const_value.nbytes for value in weights)
