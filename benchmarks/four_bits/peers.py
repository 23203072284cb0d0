"""What is compared: our graphs, those of ONNX Runtime's quantizers, and those of onnxruntime-genai's builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from benchmarks.decoder import genai
from benchmarks.decoder.bench import FLOAT32, Bench, described
from benchmarks.decoder.contenders import Contender, of_graph
from benchmarks.four_bits.judge import Forward, forward_of
from benchmarks.four_bits.tools import Writer, writers
from benchmarks.measure import Feeds
from benchmarks.variants import write_ours
from omni.decoder import LOGITS_TO_KEEP
from omni.inputs import CALIBRATION, feed_whole, read
from omni.params import GraphParams, QuantizeParams
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.decoder import Decoder
from validate.measured import MeasuredComponent, MeasuredGraph

__all__ = ["OURS", "Peer", "Setting", "peers"]

OURS = "ours as built"
_BLOCKS = (32, 64, 128)
_VALUES = "*.v_proj"  # of attention: a hundredth of a layer
_DAMPING = {"model.*": 1.0}  # of the layers, where params.yaml compensates nothing
_GPTQ_TOKENS = 2048  # ONNX Runtime's GPTQ runs the whole graph on all of them once for each activation
_GENAI = {
    "default": ("default", "last_matmul:int8"),
    "k_quant": ("k_quant", "last_matmul:int8"),
    "k_quant_mixed": ("k_quant", "last_matmul:int8,mixed_layers:int8"),
}


@dataclass(frozen=True)
class Setting:
    """What every peer is made from.

    Attributes:
        measured: Decoder as built under ``models/``.
        params: Parameters of its graph.
        held_out: Recordings that calibration has not seen, [tokens, width] float32.
        threads: Intra-op threads of each session; 0 lets ONNX Runtime choose.
    """

    measured: MeasuredComponent
    params: GraphParams
    held_out: list[np.ndarray]
    threads: int

    @property
    def graph(self) -> MeasuredGraph:
        """The component's only graph."""
        (graph,) = self.measured.graphs.values()
        return graph

    @cached_property
    def bench(self) -> Bench:
        """The checkpoint under ``models/source``, in the terms of the benchmark of decoders."""
        return Bench(self.measured.name, described(self.measured.name)[1], Path.cwd(), self.threads, 0, 0)

    @property
    def head(self) -> str:
        """Name of the linear layer that gives the logits."""
        return self.bench.decoder.head

    def feeds(self) -> list[Feeds]:
        """Return the first tokens of each calibration recording as inputs of the float32 graph."""
        recordings = list(read(self.measured.name, CALIBRATION).values())
        each = max(1, _GPTQ_TOKENS // len(recordings))
        last = {LOGITS_TO_KEEP: np.zeros((1, 1), np.int64)}  # no more of the head than the graph insists on
        return [{**feed_whole(self.graph.contract, rows[:each]), **last} for rows in recordings]


@dataclass(frozen=True)
class Peer:
    """A graph of a decoder, and what runs it.

    Attributes:
        name: Name in the table.
        head: Name of the linear layer that gives the logits, in its graph.
        write: Function that writes the graph into a folder, unless it is there already, and returns its file.
        contender: Function from the graph to what is timed.
        forward: Function from the graph to its forward pass.
        foreign: Whether another project's tool writes it, which may fail.
    """

    name: str
    head: str
    write: Writer
    contender: Callable[[Path], Contender]
    forward: Callable[[Path], Forward]
    foreign: bool = False


def peers(setting: Setting, others: Mapping[str, Path]) -> list[Peer]:
    """List the float32 graph, ours as built, and everything that is compared with these.

    Args:
        setting: What every peer is made from.
        others: More graphs with the interface of ours, by name.
    """
    graph, params = setting.graph.files[FLOAT], _quantize_params(setting)
    files = {FLOAT32: graph, OURS: setting.graph.files[QUANTIZED], **others}
    found = [_stock(setting, name, partial(_there, file)) for name, file in files.items()]
    for name, recipe in _recipes(setting).items():
        if recipe != params:
            by_recipe = partial(write_ours, setting.measured, setting.graph.stem, recipe)
            found.append(_stock(setting, f"ours {name}", by_recipe))
    for name, write in writers(graph, setting.head, setting.feeds()).items():
        found.append(_stock(setting, name, write, foreign=True))
    for name, (algorithm, eight_bits) in _GENAI.items():
        found.append(_genai(setting, f"{genai.GENAI}, {name}", algorithm, eight_bits))
    return found


def _there(file: Path, _: Path) -> Path:
    """Return a graph that is there already."""
    return file


def _stock(setting: Setting, name: str, write: Writer, *, foreign: bool = False) -> Peer:
    """Return a peer that our own run-time runs."""
    positions, threads = setting.bench.size.positions, setting.threads

    def forward(graph: Path) -> Forward:
        return forward_of(Decoder(graph, positions, threads))

    def contender(graph: Path) -> Contender:
        return of_graph(name, graph, positions, threads)

    return Peer(name, setting.head, write, contender, forward, foreign)


def _genai(setting: Setting, name: str, algorithm: str, eight_bits: str) -> Peer:
    """Return a peer that onnxruntime-genai builds and runs; a token of its stands for each row that it is fed."""

    def write(folder: Path) -> Path:
        if not genai.installed():
            raise UserError("not installed (pip install '.[bench]')")
        bench, vocabulary = _genai_bench(setting, folder), setting.bench.size.vocabulary
        if len(bench.rows) > vocabulary:
            raise UserError(f"{len(bench.rows)} different rows are more than the {vocabulary} tokens it has")
        bench.source.parent.mkdir(parents=True)
        bench.source.symlink_to(setting.bench.source)
        genai.build(bench, algorithm, eight_bits)
        return genai.graph(bench)

    def contender(graph: Path) -> Contender:
        return genai.open_built(_genai_bench(setting, graph.parents[1]), name)

    # Its prompts give the last token's logits alone, as ours do where they are timed.
    return Peer(name, genai.HEAD, write, contender, lambda graph: contender(graph).teacher_forced, foreign=True)


@dataclass(frozen=True)
class _GenaiBench(Bench):
    """A bench with rows that were recorded.

    Attributes:
        recorded: Different rows, [tokens, width] float32.
    """

    recorded: np.ndarray

    @cached_property
    def rows(self) -> np.ndarray:
        """What onnxruntime-genai can be fed."""
        return self.recorded


def _genai_bench(setting: Setting, folder: Path) -> Bench:
    bench = setting.bench
    recorded = np.unique(np.concatenate(setting.held_out), axis=0)
    return _GenaiBench(bench.name, bench.decoder, folder, bench.threads, bench.cores, bench.past, recorded)


def _recipes(setting: Setting) -> dict[str, QuantizeParams]:
    """Return by name what ``params.yaml`` could say: 8 bits throughout; 4 bits, where some nodes stay at 8."""
    built, decoder = _quantize_params(setting), setting.bench.decoder
    layers = [layer for layer in (decoder.head, decoder.projection) if layer]
    spared = {**built.nodes, **{f"{layer}*": "int8-block" for layer in layers}, _VALUES: "int8-block"}
    eight = {"scheme": "int8-block", "block": 32, "nodes": {}, "compensation": {}}
    found = {"int8-block, 32": built.model_copy(update=eight)}
    for block in _BLOCKS:
        four = built.model_copy(update={"scheme": "int4-block", "block": block, "nodes": spared, "compensation": {}})
        compensated = four.model_copy(update={"compensation": built.compensation or _DAMPING})
        found |= {f"int4-block, {block}": four, f"int4-block, {block}, compensated": compensated}
    return found


def _quantize_params(setting: Setting) -> QuantizeParams:
    params = setting.params.quantize
    assert params is not None, "only graphs that are quantized are compared"
    return params
