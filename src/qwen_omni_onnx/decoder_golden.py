"""What checks a decoder: shared by Thinker and Talker.

A golden case holds rows of embeddings, and the logits and hidden states that PyTorch gave for every token of them. The
graph sees them twice: all at once, and the last few token by token after the others, with keys and values in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.decoder import Decoder

__all__ = ["CHECKS", "LOGITS", "SEQUENCES", "WAVEFORMS", "checks", "complete", "yardstick"]

CHECKS = ("prompt", "hidden", "steps")
LOGITS = ("prompt", "steps")
WAVEFORMS = ()
SEQUENCES = ("prompt", "hidden")  # steps never hold the first token of a row
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
    inside = _inside(ports)
    logits, hidden = decoder.forward(embeds, tokens)
    yield "prompt", ports["logits"][inside], logits[inside]
    yield "hidden", ports["hidden_states"][inside], hidden[inside]
    if places := _step_places(tokens):
        rows = np.arange(len(embeds))
        conversation = decoder.begin(len(embeds), reserve=embeds.shape[1])
        before = inside & (np.arange(embeds.shape[1]) < places[0][:, None])
        longest = int(places[0].max())
        conversation.prefill(embeds[:, :longest], before[:, :longest])
        said = [conversation.step(embeds[rows, place]).logits for place in places]
        yield "steps", _at(ports["logits"], places), np.concatenate(said)


def yardstick(ports: Ports, given: Ports) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield ``(check, what PyTorch gave in float32, what it gave in bfloat16)``, for the tokens that ``checks`` has."""
    inside = _inside(ports)
    yield "prompt", ports["logits"][inside], given["logits"][inside]
    yield "hidden", ports["hidden_states"][inside], given["hidden_states"][inside]
    if places := _step_places(ports["tokens"]):
        yield "steps", _at(ports["logits"], places), _at(given["logits"], places)


def _inside(ports: Ports) -> np.ndarray:
    """Return which places of a batch hold a token and no padding, [batch, seq]."""
    return np.arange(ports["inputs_embeds"].shape[1]) < ports["tokens"][:, None]


def _step_places(tokens: np.ndarray) -> list[np.ndarray]:
    """Return where each row's token of a step stands, [batch] for each step; none where a row has a single token."""
    steps = min(_STEPS, int(tokens.min()) - 1)
    return [tokens - steps + step for step in range(steps)]


def _at(logits: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
    """Return the logits of each step, one row after another: [steps * batch, vocabulary]."""
    rows = np.arange(len(logits))
    return np.concatenate([logits[rows, place] for place in places])
