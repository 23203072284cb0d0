"""Runs a graph in segments and passes on intermediate values clip by clip, with bounded memory for weights.

A graph with more than ``SEGMENT_BYTES`` of weights is split into segments: consecutive nodes with at most that many.
All clips run through one segment before the next one is opened; values that later segments read are stored on disk.

A graph that is being quantized is split after every observed value, so that the weights that read it may be computed
from it before the next segment is opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass
from safetensors import safe_open
from safetensors.numpy import save_file

from omni.inputs import feed_whole
from omni.resources import WHOLE_BYTES
from omni.stored import loaded_bytes
from omni.streamed import save_graph
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.session import open_session, run

__all__ = ["SEGMENT_BYTES", "Segments", "constant_weights", "fits", "session_bytes", "weight_bytes"]

SEGMENT_BYTES = 2 * 2**30  # two layers of the Thinker; the rest of a session's memory is small beside it


def weight_bytes(graph_file: Path) -> int:
    """Return what a graph's weights take in a session: of 16 bits, they are cast to float32."""
    return session_bytes(ir.load(graph_file).graph.initializers.values())


def fits(graph_file: Path) -> bool:
    """Return whether a graph may be opened whole: whether its weights take at most ``WHOLE_BYTES`` in a session."""
    return weight_bytes(graph_file) <= WHOLE_BYTES


@dataclass
class _Segment:
    """Consecutive nodes of a graph.

    Attributes:
        graph_inputs: Inputs of the graph that the nodes read.
        reads: Values of earlier segments that the nodes read, each with the number of its segment.
        stores: Values of the nodes that later segments read.
        spent: Numbers of the segments whose values no segment after this one reads.
        groups: Names of the observed values, in groups that are fetched by one session each; one empty group if the
            segment only stores values.
    """

    graph_inputs: set[str] = field(default_factory=set)
    reads: dict[str, int] = field(default_factory=dict)
    stores: set[str] = field(default_factory=set)
    spent: list[int] = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)


class Segments:
    """A graph and values to observe in it, in segments.

    Args:
        source: The graph's file, with external data: if its weights have at most ``SEGMENT_BYTES``, it is one segment.
            Or a model whose weights are computed while a segment of it is written: a segment then ends with each
            observed value.
        names: Names of the observed values, which are inputs of the graph or outputs of nodes.
        group: Splits names into groups that are fetched together; if not given, all of a segment are.

    Attributes:
        sessions: Number of sessions that each clip runs through.
    """

    def __init__(
        self,
        source: Path | ir.Model,
        names: Iterable[str],
        group: Callable[[list[str]], list[list[str]]] = lambda names: [names],
    ) -> None:
        names, in_turn = list(names), isinstance(source, ir.Model)
        graph = source.graph if isinstance(source, ir.Model) else ir.load(source).graph
        self._source = source
        self._inputs = {str(value.name) for value in graph.inputs}
        self._whole = not in_turn and session_bytes(graph.initializers.values()) <= SEGMENT_BYTES
        self._segments: list[_Segment] = []
        if names:
            self._segments, segment_of = ([_Segment()], {}) if self._whole else _split(graph, set(names), in_turn)
            for number, segment in enumerate(self._segments):
                here = [name for name in names if segment_of.get(name, 0) == number]
                segment.groups = group(here) if here else [[]]
        self.sessions = sum(len(segment.groups) for segment in self._segments)

    def run(
        self,
        contract: GraphContract,
        recordings: Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]],
        show: Callable[[str, Mapping[str, np.ndarray]], None],
        done: Callable[[list[str]], None] = lambda names: None,
        carried: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Run every clip through the graph.

        Args:
            contract: Interface of the graph.
            recordings: Recordings of the first input, or of all inputs, by clip.
            show: Called with a clip and a group's values by name, for all clips of one group before the next group.
            done: Called with a group's names when all clips have been shown.
            carried: Observed values that a clip hands to the next one, with the inputs that are given them: those that
                the next clip's recording lacks.
        """
        with output.temporary_folder() as folder:
            store = _ValueStore(folder)
            for number, segment in enumerate(self._segments):
                stores = segment.stores
                for names in segment.groups:
                    handed: dict[str, np.ndarray] = {}
                    session = self._open(segment, {*names, *stores} - self._inputs, store)
                    for index, clip in enumerate(recordings):
                        fed = feed_whole(contract, recordings[clip])
                        values = {**handed, **fed, **store.read(segment.reads, index)}
                        if session is not None:
                            inputs = values if self._whole else {name: values[name] for name in _inputs(segment)}
                            values |= run(session, inputs)
                        store.write(number, index, {name: values[name] for name in stores})
                        handed = {carried[name]: values[name] for name in carried.keys() & values.keys()}
                        show(clip, {name: values[name] for name in names})
                    del session  # before the next one is opened
                    stores = set()  # the first group has stored them
                    done(names)
                store.drop(segment.spent)

    def _open(self, segment: _Segment, outputs: set[str], store: _ValueStore) -> ort.InferenceSession | None:
        """Return a session of a segment with these outputs; None if there are no outputs."""
        if not outputs:
            return None
        model = self._source if isinstance(self._source, ir.Model) else ir.load(self._source)
        if self._whole:
            observed = [value for node in model.graph for value in node.outputs if value.name in outputs]
            model.graph.outputs.clear()
            model.graph.outputs.extend(observed)
            RemoveUnusedNodesPass()(model)  # nodes after the last observed value need not run
        else:
            graph = ir.convenience.extract(model.graph, sorted(_inputs(segment)), sorted(outputs))
            for value in graph.inputs:
                if value.name in segment.reads:
                    value.type = ir.TensorType(ir.DataType.from_numpy(store.dtypes[value.name]))
            model = ir.Model(graph, ir_version=model.ir_version)
        if isinstance(self._source, Path):
            return open_session(ir.to_proto(model).SerializeToString(), data_folder=self._source.parent)
        with output.temporary_folder() as folder:
            save_graph(model, folder, "segment")
            return open_session(folder / "segment.onnx")


class _ValueStore:
    """Values that segments store for later ones: a folder for each segment, and in it a file for each clip.

    Attributes:
        dtypes: Dtypes of the values by name.
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
        values = {}
        for name, segment in reads.items():
            with safe_open(self._file(segment, clip), "numpy") as file:
                values[name] = file.get_tensor(name)
        return values

    def drop(self, segments: Iterable[int]) -> None:
        for segment in segments:
            shutil.rmtree(self._file(segment, 0).parent)

    def _file(self, segment: int, clip: int) -> Path:
        return self._folder / str(segment) / f"{clip}.safetensors"


def _split(graph: ir.Graph, wanted: set[str], in_turn: bool) -> tuple[list[_Segment], dict[str, int]]:
    """Split the nodes that the observed values depend on; return the segments, and each value's segment number.

    Args:
        graph: The graph.
        wanted: Names of the observed values.
        in_turn: Whether a segment ends with each observed value.
    """
    constants = constant_weights(graph)
    segments, segment_of = [_Segment()], dict[str, int]()
    loaded: frozenset[ir.Value] = frozenset()
    ended = in_turn and any(value.name in wanted for value in graph.inputs)
    for node in _needed(graph, wanted):
        if all(value in constants for value in node.outputs):
            continue  # every segment that reads it computes it
        read = [value for value in node.inputs if value is not None]
        weights = frozenset[ir.Value]().union(*(constants.get(value, ()) for value in read))
        if ended or (loaded and session_bytes(loaded | weights) > SEGMENT_BYTES):
            segments.append(_Segment())
            loaded = frozenset()
        ended = in_turn and any(value.name in wanted for value in node.outputs)
        loaded |= weights
        number = len(segments) - 1
        for value in read:
            name = str(value.name)
            if value.is_graph_input():
                segments[number].graph_inputs.add(name)
            elif value not in constants and segment_of[name] < number:
                segments[number].reads[name] = segment_of[name]
                segments[segment_of[name]].stores.add(name)
        segment_of |= {str(value.name): number for value in node.outputs}
    last_reader = {maker: number for number, segment in enumerate(segments) for maker in segment.reads.values()}
    for maker, number in last_reader.items():
        segments[number].spent.append(maker)
    return segments, segment_of


def _needed(graph: ir.Graph, wanted: set[str]) -> list[ir.Node]:
    """Return the nodes that the wanted values depend on, in order."""
    nodes: list[ir.Node] = []
    read: set[ir.Value | None] = set()
    for node in reversed(graph):
        if any(value.name in wanted or value in read for value in node.outputs):
            nodes.append(node)
            read.update(node.inputs)
    return nodes[::-1]


def constant_weights(graph: ir.Graph) -> dict[ir.Value, frozenset[ir.Value]]:
    """Return the constant values, which depend on no input, and the weights that each is computed from.

    Every segment computes them itself: ONNX Runtime's fusions need constants, and so do inputs of some operators.
    """
    constants: dict[ir.Value, frozenset[ir.Value]] = {
        value: frozenset([value]) for value in graph.initializers.values()
    }
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if all(value in constants for value in read):
            constants |= dict.fromkeys(node.outputs, frozenset[ir.Value]().union(*(constants[value] for value in read)))
    return constants


def _inputs(segment: _Segment) -> set[str]:
    return {*segment.graph_inputs, *segment.reads}


def session_bytes(weights: Iterable[ir.Value]) -> int:
    """Return what weights take in a session: of 16 bits, they are cast to float32."""
    return sum(loaded_bytes(value.const_value) for value in weights)
