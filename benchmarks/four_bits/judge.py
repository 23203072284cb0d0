"""Judge a decoder's logits over whole recordings that calibration has not seen, and count the bits of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.variants import disk_bytes
from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import kl_divergence, top1
from qwen_omni_onnx.decoder import Decoder
from qwen_omni_onnx.embedding import EmbeddingTable

__all__ = ["Forward", "Judge", "Judgement", "Weights", "forward_of", "golden_kl", "surprise_of", "token_ids",
           "weights"]  # fmt: skip

Forward = Callable[[np.ndarray], np.ndarray]  # from rows [tokens, width] to logits [tokens, vocabulary]
_CHUNK = 4096  # rows of the embedding table that are compared at a time
_MATRICES = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_BIAS = 5  # place of a bias among a matrix operator's inputs; what stands before it are codes, scales and zero points


@dataclass(frozen=True)
class Judgement:
    """How close a decoder's logits are to those of the float32 graph, over all tokens of all recordings.

    Attributes:
        tokens: Number of tokens.
        kl: Kullback-Leibler divergence from the float32 graph in nats, mean over all tokens.
        kl_later: The same without the first token of each recording, which is the usual attention sink.
        top1: Share of tokens with the same best candidate, strict.
        perplexity: Perplexity of the true next token; None where the recordings are not of text alone.
    """

    tokens: int
    kl: float
    kl_later: float
    top1: float
    perplexity: float | None


class Judge:
    """Compares logits with those of the float32 graph, which lie in files: of a large vocabulary they are gigabytes.

    Args:
        recordings: Embeddings of each recording, [tokens, width] float32; two tokens or more.
        ids: Tokens of each recording, [tokens]; None where they are not known.
        forward: Forward pass of the float32 graph.
        folder: Folder of the files.
    """

    def __init__(
        self, recordings: list[np.ndarray], ids: list[np.ndarray] | None, forward: Forward, folder: Path
    ) -> None:
        self._recordings = recordings
        self._ids = ids
        self._files = [folder / f"logits{index}.npy" for index in range(len(recordings))]
        for file, rows in zip(self._files, recordings, strict=True):
            np.save(file, forward(rows))

    def __call__(self, forward: Forward) -> Judgement:
        """Return how close a forward pass comes.

        Raises:
            UserError: The logits are of another shape, or not finite.
        """
        lengths = [len(rows) for rows in self._recordings]
        found = [self._one(index, forward) for index in range(len(lengths))]
        divergence, first, same, surprise = (float(np.sum(column)) for column in zip(*found, strict=True))
        tokens, later = sum(lengths), sum(lengths) - len(lengths)
        perplexity = None if self._ids is None else float(np.exp(surprise / later))
        return Judgement(tokens, divergence / tokens, (divergence - first) / later, same / tokens, perplexity)

    def _one(self, index: int, forward: Forward) -> tuple[float, float, float, float]:
        """Return sums over a recording: of divergences, the first token's, of equal best candidates, of surprise."""
        expected, actual = np.load(self._files[index], mmap_mode="r"), forward(self._recordings[index])
        if actual.shape != expected.shape or not np.isfinite(actual).all():
            raise UserError(f"logits {list(actual.shape)} are not {list(expected.shape)} finite numbers")
        surprise = 0.0 if self._ids is None else surprise_of(actual[:-1], self._ids[index][1:])
        count = len(expected)
        whole, first = kl_divergence(expected, actual) * count, kl_divergence(expected[:1], actual[:1])
        return whole, first, top1(expected, actual) * count, surprise


def forward_of(decoder: Decoder) -> Forward:
    """Return the forward pass of a decoder over the whole of a recording at once."""
    return lambda rows: decoder.forward(rows[None], np.array([len(rows)]))[0][0]


def golden_kl(recorded: Path, forward: Forward) -> float:
    """Return the KL divergence from PyTorch in float32 over the golden cases in nats, mean over their tokens.

    Args:
        recorded: File of the golden cases.
        forward: Forward pass of a decoder.
    """
    total, tokens = 0.0, 0
    for _, ports in golden.read(recorded):
        for rows, count, expected in zip(ports["inputs_embeds"], ports["tokens"], ports["logits"], strict=True):
            total += kl_divergence(expected[:count], forward(rows[:count])) * int(count)
            tokens += int(count)
    return total / tokens


def token_ids(recordings: list[np.ndarray], table: EmbeddingTable) -> list[np.ndarray] | None:
    """Return the tokens whose rows of the embedding table the recordings are, exactly.

    Args:
        recordings: Embeddings of each recording, [tokens, width] float32.
        table: Embedding table.

    Returns:
        The tokens of each recording, [tokens]; None if any row is not of the table, as embeddings of sound are not.
    """
    if any(rows.shape[1] != table.width for rows in recordings):
        return None
    wanted = {row.tobytes() for rows in recordings for row in rows}
    found: dict[bytes, int] = {}
    for start in range(0, table.vocabulary, _CHUNK):
        for token, row in enumerate(table(np.arange(start, min(start + _CHUNK, table.vocabulary))), start):
            if (key := row.tobytes()) in wanted:
                found.setdefault(key, token)
    if len(found) < len(wanted):
        return None
    return [np.array([found[row.tobytes()] for row in rows]) for rows in recordings]


@dataclass(frozen=True)
class Weights:
    """What a graph's weights take.

    Attributes:
        mb: Size of graph and data in MB, without an embedding table.
        layer_bytes: Bytes of the layers' matrices, with scales and zero points.
        head_bits: Bits of each weight of the head, without scales.
    """

    mb: float
    layer_bytes: int
    head_bits: int


def weights(graph: Path, head: str) -> Weights:
    """Count the bytes of a graph's weights.

    Args:
        graph: ONNX file.
        head: Name of the linear layer that gives the logits, which the names of its nodes contain.
    """
    nodes = list(ir.load(graph).graph)
    matrices = [node for node in nodes if node.op_type in _MATRICES]
    of_head = [node for node in matrices if head in (node.name or "")]
    layers = _constants(value for node in matrices if node not in of_head for value in node.inputs[1:_BIAS])
    tables = _constants(value for node in nodes if node.op_type == "Gather" for value in node.inputs[:1])
    return Weights((disk_bytes(graph) - tables) / 1e6, layers, min(map(_bits, of_head)))


def _constants(values: Iterable[ir.Value | None]) -> int:
    """Return the bytes of those values that are initializers, each counted once."""
    return sum({value.name: value.const_value.nbytes for value in values if value and value.const_value}.values())


def _bits(node: ir.Node) -> int:
    if "bits" in node.attributes:
        return node.attributes["bits"].as_int()
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None, "the head has a constant matrix"
    return weight.const_value.dtype.bitwidth


def surprise_of(logits: np.ndarray, following: np.ndarray) -> float:
    """Return the sum over tokens of -log p of the token that follows, in nats.

    Args:
        logits: Logits of each token, [tokens, vocabulary].
        following: The token that follows each of them, [tokens].
    """
    total = 0.0
    for row, token in zip(logits, following, strict=True):
        below = row.astype(np.float64) - row[token]
        most = below.max()
        total += float(most + np.log(np.exp(below - most).sum()))
    return total
