"""Decoders, Thinker and Talker, as graphs that are constructed and not traced, whatever the size, in little memory."""

from __future__ import annotations

from pathlib import Path

from export.decoder.builder import FLOAT32, build
from export.decoder.linear import Schemes
from export.decoder.weights import write_embedding
from omni.checkpoint import Checkpoint
from omni.decoder import Decoder
from omni.streamed import save_graph

__all__ = ["FLOAT32", "Schemes", "build", "write"]


def write(decoder: Decoder, checkpoint: Checkpoint, folder: Path, schemes: Schemes = FLOAT32) -> None:
    """Write a decoder's graph, its data, and its embedding table.

    Memory: two of the largest matrices, and a little; of the vocabulary's matrix, only slices are ever there.

    Args:
        decoder: which.
        checkpoint: its tensors.
        folder: that is there already.
        schemes: how matrices are stored.

    Raises:
        Problem: see :func:`build`.
    """
    save_graph(build(decoder, checkpoint, schemes), folder, decoder.graph)
    write_embedding(checkpoint, f"{decoder.prefix}.model.embed_tokens.weight", folder / decoder.embedding)
