"""What checks a decoder: shared by Thinker and Talker.

A golden case holds rows of embeddings, and the logits and hidden states that PyTorch gave for every token of them. The
graph sees them twice: all at once, and the last few token by token after the others, with keys and values in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from omni.contract import GraphContract
from speech.decoder import Decoder

__all__ = ["CHECKS", "LOGITS", "WAVEFORMS", "checks", "complete"]

CHECKS = ("prompt", "hidden", "steps")
LOGITS = ("prompt", "steps")
WAVEFORMS = ()
_STEPS = 8
Ports = Mapping[str, np.ndarray]


class Decoding(Protocol):
    """Thinker or Talker."""

    decoder: Decoder


def complete(fed: Ports, folder: Path, contract: GraphContract, number: int) -> dict[str, np.ndarray]:
    """Return what a golden case is fed: rows of embeddings and their lengths are all that there is."""
    return dict(fed)


def checks(model: Decoding, ports: Ports) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield ``(check, what PyTorch gave, what the graph gives)`` for a golden case, for each of ``CHECKS``.

    A case with a row of a single token has nothing to step after: it is not checked so.
    """
    decoder, embeds, tokens = model.decoder, ports["inputs_embeds"], ports["tokens"]
    inside = np.arange(embeds.shape[1]) < tokens[:, None]
    logits, hidden = decoder.at_once(embeds, tokens)
    yield "prompt", ports["logits"][inside], logits[inside]
    yield "hidden", ports["hidden_states"][inside], hidden[inside]
    steps = min(_STEPS, int(tokens.min()) - 1)
    if steps:
        rows = np.arange(len(embeds))
        conversation = decoder.begin(len(embeds), room=embeds.shape[1])
        before = inside & (np.arange(embeds.shape[1]) < tokens[:, None] - steps)
        longest = int(tokens.max()) - steps
        conversation.prefill(embeds[:, :longest], before[:, :longest])
        places = [tokens - steps + step for step in range(steps)]
        said = [conversation.step(embeds[rows, place]).logits for place in places]
        yield "steps", np.concatenate([ports["logits"][rows, place] for place in places]), np.concatenate(said)
