"""Measurements at the logits of a decoder: KL divergence of its recipe, and of the recipe with some nodes widened.

The recipe is what ``params.yaml`` says of the graph. What a node costs is measured on it, and not on the float32 graph:
what smoothing and error compensation leave of a node's noise is what its wider scheme would remove.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from omni.params import QuantizeParams
from omni.pieces.work import Place, Pool
from omni.stored import load_graph
from omni.streamed import data_file, save_graph
from omni.weight import matmuls
from quantize.sensitivity.suffix import Suffix, record, reuse_weights, signatures
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.metrics import kl_divergence
from qwen_omni_onnx.common.session import open_session, run

__all__ = ["Build", "Gain", "LogitsBench", "Measured", "prompts"]

Build = Callable[[QuantizeParams], tuple[ir.Model, dict[str, dict[str, Any]]]]
"""Quantizes the graph by parameters: see :func:`quantize.apply.quantize`."""

_ROWS, _TOKENS = 8, 1024  # clips, and tokens of all of them: gains differ by more than other texts change them
_LOGITS_BYTES = 128 * 2**20  # tokens whose logits are compared are spaced evenly, as many as this holds
_RECORDED = 10  # nodes whose activations are kept at a time: two layers
_OF_SCHEME = frozenset(
    {"scheme", "operator", "nodes", "compensation"}
)  # entries of a node's record that follow from its own scheme


@dataclass(frozen=True)
class Measured:
    """KL divergence of a graph's logits from float32's, in nats a token, and its size on disk with its data."""

    kl: float
    bytes: int


@dataclass(frozen=True)
class Gain:
    """What widening one node takes off the KL divergence, in nats a token, and adds to the weights' size."""

    kl: float
    bytes: int


class LogitsBench:
    """A decoder's recipe, and the inputs that it is measured on.

    Attributes:
        fed: Inputs of the graph.
        base_file: File of the recipe's graph.
        base: The recipe as it is.
        nodes: Nodes that have fewer bits than the wider scheme, in the graph's order.
    """

    def __init__(
        self,
        graph_file: Path,
        contract: GraphContract,
        params: QuantizeParams,
        build: Build,
        scheme: str,
        clips: Mapping[str, np.ndarray],
        folder: Path,
    ) -> None:
        """Run the float32 graph, and build and measure the recipe.

        Args:
            graph_file: File of the float32 graph.
            contract: Interface of the graph.
            params: The recipe.
            build: Quantizes the graph by parameters.
            scheme: Wider scheme of nodes.
            clips: Recordings by name, [tokens, width].
            folder: Empty folder for the recipe's graph.
        """
        self.fed = prompts(contract, clips)
        self._output, self._params, self._build, self._scheme = contract.outputs[0].name, params, build, scheme
        self._folder = folder
        self._expected = self._logits(graph_file)
        model, self._record = build(params)
        narrow = {name for name, entry in self._record.items() if _bits(entry["scheme"]) < _bits(scheme)}
        names = [str(node.name) for nodes in matmuls(load_graph(graph_file).graph).values() for node in nodes]
        self.nodes = [node for node in names if any(_is_of(name, node) for name in narrow)]
        self._base_bytes = _weight_bytes(model)
        self.base_file = folder / "base.onnx"
        self.base = self._measured(model, self.base_file)

    @property
    def tokens(self) -> int:
        """Number of tokens whose logits are compared."""
        return int(np.prod(self._expected.shape[:-1]))

    def widened(self, nodes: Collection[str]) -> dict[str, str]:
        """Return the recipe's table of ``nodes`` in which these have the wider scheme; their entries come first."""
        wide = dict.fromkeys(nodes, self._scheme)
        return wide | {pattern: scheme for pattern, scheme in self._params.nodes.items() if pattern not in wide}

    def whole(self, nodes: Collection[str]) -> Measured:
        """Build the recipe with these nodes widened, as ``python -m quantize`` would, and measure it."""
        with output.temporary_folder(self._folder.parent) as folder:
            return self._measured(self._variant(nodes)[0], folder / "whole.onnx")

    def gains(self, reads: Sequence[Path], pool: Pool) -> dict[str, Gain]:
        """Return what each node gains when it alone is widened.

        Only what lies behind the node runs, on activations of the recipe, of which a few nodes' are kept at a time.

        Args:
            reads: Folders that quantizing the graph reads.
            pool: Processes that share the work.
        """
        parts = [self.nodes[first : first + _RECORDED] for first in range(0, len(self.nodes), _RECORDED)]
        found: dict[str, Gain] = {}
        work = _Gains(self, (self._folder, *reads))
        pool.run(work, {part[0]: part for part in parts}, "sensitivity", lambda _, gains: found.update(gains))
        return {node: found[node] for node in self.nodes}

    def some_gains(self, nodes: Sequence[str], original: ir.Graph) -> Iterator[tuple[str, Gain]]:
        """Yield what some nodes gain.

        Args:
            nodes: The nodes, few enough to keep what they read.
            original: The recipe's graph, from its file.
        """
        suffixes, sizes, elsewhere = {}, {}, []
        for node in nodes:
            model, made = self._variant([node])
            sizes[node] = _weight_bytes(model) - self._base_bytes
            if _fixed(made, node) != _fixed(self._record, node):
                elsewhere.append(node)
                continue
            reuse_weights(model, original)
            suffixes[node] = Suffix(model, signatures(original), self._output)
        frontier = set().union(*(suffix.frontier for suffix in suffixes.values()))
        recorded = record(self.base_file, frontier, self.fed, prepack=True) if suffixes else {}
        for node in nodes:
            if node in elsewhere:
                kl = self.whole([node]).kl
            else:
                # Without prepacking, MatMulNBits would not quantize its activations.
                kl = self._kl(suffixes[node].run(recorded, self._folder, prepack=True))
            yield node, Gain(self.base.kl - kl, sizes[node])

    def _variant(self, nodes: Collection[str]) -> tuple[ir.Model, dict[str, dict[str, Any]]]:
        # A widened node has no compensated codes; the others keep theirs, which were made beside narrow ones.
        rounded: dict[str, float | None] = dict.fromkeys(nodes)
        compensation = rounded | {
            pattern: damping for pattern, damping in self._params.compensation.items() if pattern not in rounded
        }
        return self._build(self._params.model_copy(update={"nodes": self.widened(nodes), "compensation": compensation}))

    def _measured(self, model: ir.Model, file: Path) -> Measured:
        save_graph(model, file.parent, file.stem)
        return Measured(self._kl(self._logits(file)), file.stat().st_size + data_file(file).stat().st_size)

    def _logits(self, file: Path) -> np.ndarray:
        found: np.ndarray = run(open_session(file), self.fed)[self._output]
        return found

    def _kl(self, logits: np.ndarray) -> float:
        return kl_divergence(self._expected, logits)


@dataclass(frozen=True)
class _Gains:
    """The work of widening nodes.

    Attributes:
        bench: The recipe.
        needs: Folders that it reads.
    """

    bench: LogitsBench
    needs: tuple[Path, ...]

    def open(self, place: Place) -> Callable[[Sequence[str]], dict[str, Gain]]:
        """Return what gives the gains of some nodes; all paths are relative."""
        original = ir.load(self.bench.base_file).graph
        return lambda nodes: dict(self.bench.some_gains(nodes, original))


def prompts(contract: GraphContract, clips: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return inputs: the beginnings of the longest clips, as rows of a batch, and tokens whose logits are compared.

    A clip's first tokens become attention sinks, on which the values of all others depend.

    Args:
        contract: Interface of the graph.
        clips: Recordings by name, [tokens, width].
    """
    assert contract.places is not None
    chosen = sorted(clips.values(), key=len)[-_ROWS:]
    length = min(_TOKENS // len(chosen), len(chosen[0]))
    (*_, vocabulary) = contract.outputs[0].shape
    compared = min(length, max(1, _LOGITS_BYTES // (4 * int(vocabulary) * len(chosen))))
    places = np.linspace(length - 1, 0, compared).round().astype(np.int64)[::-1]
    given = {
        contract.inputs[0].name: np.stack([clip[:length] for clip in chosen]),
        contract.places: np.tile(places, (len(chosen), 1)),
    }
    return contract.example(len(chosen), length, given)


def _is_of(name: str, node: str) -> bool:
    """Whether a name in a record is that of a node, or of a part of it."""
    return name == node or name.startswith(f"{node}.")


def _fixed(record: Mapping[str, Mapping[str, Any]], node: str) -> list[Any]:
    """Return what a record says of other nodes, and how the node's activation was changed.

    Where widening the node alters it, because the wider scheme is not smoothed, for instance, weights under the same
    names differ in the two graphs, and only the whole graph can be measured.
    """
    own = [entry for name, entry in record.items() if _is_of(name, node)]
    changes = {(key, value) for entry in own for key, value in entry.items() if key not in _OF_SCHEME}
    return [changes, {name: entry for name, entry in record.items() if not _is_of(name, node)}]


def _bits(scheme: str) -> int:
    return 32 if scheme == "float32" else int(scheme.removeprefix("int").partition("-")[0])


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
