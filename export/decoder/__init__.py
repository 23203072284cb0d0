"""Decoders, Thinker and Talker, as graphs that are constructed and not traced, whatever the size, in little memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx_ir as ir

from export.decoder.builder import FLOAT32, build
from export.decoder.linear import Schemes
from export.decoder.weights import write_embedding
from export.exporter import Constructed
from omni.checkpoint import Checkpoint
from omni.decoder import Decoder
from omni.params import QuantizeParams
from omni.streamed import save_graph

__all__ = ["FLOAT32", "Schemes", "build", "constructed", "write"]


def write(decoder: Decoder, checkpoint: Checkpoint, folder: Path, schemes: Schemes = FLOAT32) -> None:
    """Write a decoder's graph, its data, and its embedding table.

    Memory: two of the largest matrices, and a little; of the vocabulary's matrix, only slices are ever there.

    Args:
        decoder: which.
        checkpoint: its tensors.
        folder: that is there already.
        schemes: how matrices are stored.

    Raises:
        UserError: see :func:`build`.
    """
    save_graph(build(decoder, checkpoint, schemes), folder, decoder.graph)
    _write_table(decoder, checkpoint, folder)


def constructed(decoder: Decoder) -> Constructed:
    """Return what the stage ``export`` wants to know: the graph, and the embedding table beside it."""

    def graph(checkpoint: Checkpoint, how: QuantizeParams | None) -> ir.Model:
        return build(decoder, checkpoint, Schemes(how.scheme, how.block, how.nodes) if how else FLOAT32)

    return Constructed(graph, partial(_write_table, decoder))


def _write_table(decoder: Decoder, checkpoint: Checkpoint, folder: Path) -> None:
    write_embedding(checkpoint, f"{decoder.prefix}.model.embed_tokens.weight", folder / decoder.embedding)
