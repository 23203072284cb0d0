"""Measurements of one graph: noise of single nodes and of the whole, and times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from omni.inputs import feed
from omni.params import QuantizeParams
from omni.pieces.work import Place, Pool
from omni.stored import load_graph
from omni.streamed import data_file, save_graph
from omni.weight import matmuls
from quantize.apply import Calibration, quantize
from quantize.sensitivity.suffix import Suffix, record, signatures
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import node_events, open_session, profile, run

__all__ = ["Bench", "Joint", "Profile", "recordings"]

_ROWS, _SHARE = 3, 5  # clips, and of each this part of the largest measured length: 6 s of sound for the encoder
_ROUNDS, _SECONDS = 6, 2.0  # profiled runs, at least, and for at least this long; of each node, the fastest counts
_UNPACKED = frozenset({"int8-token", "int8-tensor", "int8-static"})  # same values without prepacking, and sooner there


@dataclass(frozen=True)
class Profile:
    """Times in ms of one run: of each node by name, and of the whole graph."""

    nodes: Mapping[str, float]
    total: float


@dataclass(frozen=True)
class Joint:
    """A graph as a whole, built with a scheme for each node: SQNR at the output, size on disk, times."""

    sqnr_db: float
    bytes: int
    profile: Profile | None


@dataclass(frozen=True)
class Bench:
    """A graph and the inputs that it is measured on.

    Attributes:
        graph_file: File of the float32 graph.
        output: Name of the output that is compared.
        params: Quantization of the graph; the schemes of its nodes do not count here.
        calibration: Calibration by activation.
        fed: Inputs for the noise.
        fed_long: Inputs for the times.
        threads: Intra-op threads of the sessions that are timed; 0 lets ONNX Runtime choose.
    """

    graph_file: Path
    output: str
    params: QuantizeParams
    calibration: Mapping[str, Calibration]
    fed: Mapping[str, np.ndarray]
    fed_long: Mapping[str, np.ndarray]
    threads: int = 0

    def build(self, schemes: Mapping[str, str]) -> ir.Model:
        """Return the graph with these schemes, all other nodes float32."""
        nodes = {node: scheme for node, scheme in schemes.items() if scheme != "float32"}
        params = self.params.model_copy(update={"scheme": "float32", "nodes": nodes})
        return quantize(self.graph_file, params, self.calibration)[0]

    def groups(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the nodes and their matrices' shapes [in, out], by the activation that they read."""
        found = matmuls(load_graph(self.graph_file).graph).items()
        return {
            str(value.name): {str(node.name): node.inputs[1].shape.numpy() for node in nodes} for value, nodes in found
        }

    def alone(self, candidates: Sequence[tuple[str, str]], pool: Pool) -> dict[tuple[str, str], float]:
        """Return the noise that each ``(node, scheme)`` adds to the output while all other nodes are float32.

        Noise is its energy as a share of the signal's.

        Args:
            candidates: Nodes and schemes.
            pool: Processes that share the work.
        """
        noise: dict[str, float] = {}
        pieces = {f"{node} as {scheme}": (node, scheme) for node, scheme in candidates}
        pool.run(_Alone(self, tuple(candidates)), pieces, "sensitivity", noise.__setitem__)
        return {candidate: noise[name] for name, candidate in pieces.items()}

    def joint(self, schemes: Mapping[str, str], expected: np.ndarray | None = None, *, timed: bool = False) -> Joint:
        """Build the graph with these schemes beside the models, and measure it as a whole.

        Args:
            schemes: Schemes by node; other nodes stay float32.
            expected: Output of the float32 graph, which is run if it is not given.
            timed: Whether to profile the graph, too.
        """
        if expected is None:
            expected = self.expected()
        with output.temporary_folder(self.graph_file.parents[2]) as folder:
            save_graph(self.build(schemes), folder, "joint")
            graph = folder / "joint.onnx"
            actual = run(open_session(graph), self.fed)[self.output]
            return Joint(
                sqnr_db(expected, actual),
                graph.stat().st_size + data_file(graph).stat().st_size,
                self.profile(graph) if timed else None,
            )

    def expected(self) -> np.ndarray:
        """Return the float32 graph's output."""
        found: np.ndarray = run(open_session(self.graph_file), self.fed)[self.output]
        return found

    def profile(self, graph: Path) -> Profile:
        """Run a graph several times under ONNX Runtime's profiler; other processes only ever add to the fastest run."""
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(graph, threads=self.threads, profiled_to=Path(folder) / "profile")
            rounds, began = 0, time.perf_counter()
            while rounds < _ROUNDS or time.perf_counter() - began < _SECONDS:
                run(session, self.fed_long)
                rounds += 1
            return _fastest(session, rounds)


@dataclass(frozen=True)
class _Alone:
    """The work of measuring nodes alone.

    Attributes:
        bench: The graph.
        candidates: All nodes and schemes: what they read of the original graph is recorded together.
    """

    bench: Bench
    candidates: tuple[tuple[str, str], ...]

    @property
    def needs(self) -> list[Path]:
        """The graph's folder."""
        return [self.bench.graph_file.parent]

    def open(self, place: Place) -> Callable[[tuple[str, str]], float]:
        """Run the original graph, and return what gives the noise of a candidate."""
        folder = place(self.bench.graph_file.parent)
        bench = replace(self.bench, graph_file=folder / self.bench.graph_file.name)
        original = signatures(load_graph(bench.graph_file).graph)

        def suffix(node: str, scheme: str) -> Suffix:
            return Suffix(bench.build({node: scheme}), original, bench.output)

        frontier = set().union(*(suffix(*candidate).frontier for candidate in self.candidates))
        recorded = record(bench.graph_file, frontier, bench.fed)

        def noise(candidate: tuple[str, str]) -> float:
            # Laying a 2.5 GB model's weights out anew takes longer than the one run that it would serve.
            actual = suffix(*candidate).run(recorded, folder, prepack=candidate[1] not in _UNPACKED)
            return 10 ** (-sqnr_db(recorded[bench.output], actual) / 10)

        return noise


def recordings(contract: GraphContract, clips: Mapping[str, np.ndarray], longest: int) -> Mapping[str, np.ndarray]:
    """Return inputs for the noise: the middle of each of the longest clips, as rows of a batch.

    Args:
        contract: Interface of the graph.
        clips: Recordings by name.
        longest: Largest length that the component's latency is measured at; rows are a fifth of that.
    """
    axis = contract.axis
    length = max(1, longest // _SHARE)
    rows = []
    for clip in sorted(clips.values(), key=lambda clip: -clip.shape[axis])[:_ROWS]:
        start = max(0, clip.shape[axis] - length) // 2  # clips begin and end in silence
        rows.append(clip.take(np.arange(start, min(start + length, clip.shape[axis])), axis))
    inputs = {**feed(contract, rows, [length] * len(rows)), **contract.every_place(len(rows), length)}
    return contract.example(len(rows), length, inputs)


def _fastest(session: ort.InferenceSession, rounds: int) -> Profile:
    events = profile(session)
    took: dict[str, list[float]] = {}
    for event in node_events(events):
        took.setdefault(event["name"], []).append(event["dur"] / 1e3)
    # Of a name that several nodes share, all belong to the run.
    nodes = {name: float(np.reshape(times, (rounds, -1)).sum(1).min()) for name, times in took.items()}
    return Profile(nodes, min(event["dur"] / 1e3 for event in events if event["name"] == "model_run"))
