"""Judge a decoder whose float32 graph does not fit into memory: whatever is asked of it is computed in segments.

Who asks is asked twice. The first time a decoder notes each run, and answers zeros; then all runs pass through one
segment of the graph after another, keys and values with them; the second time it gives the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from omni.decoder import LOGITS_TO_KEEP
from omni.resources import progress
from omni.segments import Segments, fits
from qwen_omni_onnx.common.agreement import FLOAT
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.decoder import DecoderOutput
from qwen_omni_onnx.runtimes import DECODERS
from validate.measured import MeasuredComponent

__all__ = ["SegmentedDecoder", "SegmentedModel", "ask", "needed"]

_LOGITS, _HIDDEN = "logits", "hidden_states"
_PAST, _PRESENT = "past_key_values.", "present."
Answer = TypeVar("Answer")


def needed(measured: MeasuredComponent) -> bool:
    """Return whether a component is a decoder whose float32 graph is too large to be opened whole."""
    if measured.name not in DECODERS:
        return False
    (graph,) = measured.graphs.values()
    return FLOAT in graph.files and not fits(graph.files[FLOAT])


def ask(measured: MeasuredComponent, question: Callable[[SegmentedModel], Answer]) -> Answer:
    """Return what a question returns of a decoder's float32 graph.

    Args:
        measured: The decoder.
        question: Runs the decoder of a model. It is called twice, and has to ask the same both times.
    """
    (graph,) = measured.graphs.values()
    model = SegmentedModel(SegmentedDecoder(graph.contract))
    question(model)
    model.decoder.compute(graph.files[FLOAT])
    return question(model)


class SegmentedDecoder:
    """Stands for :class:`qwen_omni_onnx.decoder.Decoder` where golden cases are judged.

    Args:
        contract: Interface of the graph.
    """

    def __init__(self, contract: GraphContract) -> None:
        self._contract = contract
        widths = {port.name: port.shape[-1] for port in contract.outputs}
        self.vocabulary, self.hidden = int(widths[_LOGITS]), int(widths[_HIDDEN])
        self._caches = {port.name: port.shape for port in contract.inputs if port.name.startswith(_PAST)}
        self._runs: list[Mapping[str, np.ndarray]] = []
        self._answers: Iterator[Mapping[str, np.ndarray]] | None = None

    def forward(self, inputs_embeds: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and hidden states of every token, as ``Decoder.forward`` does."""
        batch, seq, _ = inputs_embeds.shape
        inside = np.arange(seq) < tokens[:, None]
        found = self.run(inputs_embeds, inside, np.tile(np.arange(seq), (batch, 1)), begins=True)
        logits, hidden = (np.where(inside[..., None], found[name], np.float32(0)) for name in (_LOGITS, _HIDDEN))
        return logits, hidden

    def begin(self, batch: int = 1, reserve: int = 0) -> SegmentedSession:
        """Return a session without tokens; nothing need be reserved."""
        return SegmentedSession(self, np.zeros(batch, np.int64))

    def run(
        self, inputs_embeds: np.ndarray, attention_mask: np.ndarray, logits_to_keep: np.ndarray, *, begins: bool
    ) -> Mapping[str, np.ndarray]:
        """Return the outputs of one run of the graph; without ``begins``, it goes on where the run before it ended."""
        if self._answers is not None:
            return next(self._answers)
        batch, seq, _ = inputs_embeds.shape
        fed: dict[str, np.ndarray] = {
            "inputs_embeds": np.ascontiguousarray(inputs_embeds, np.float32),
            "attention_mask": attention_mask.astype(np.int64),
            LOGITS_TO_KEEP: logits_to_keep,
        }
        if begins:
            shapes = ((name, int(shape[1]), int(shape[3])) for name, shape in self._caches.items())
            fed |= {name: np.zeros((batch, heads, 0, width), np.float32) for name, heads, width in shapes}
        self._runs.append(fed)
        return {
            _LOGITS: np.zeros((batch, logits_to_keep.shape[1], self.vocabulary), np.float32),
            _HIDDEN: np.zeros((batch, seq, self.hidden), np.float32),
        }

    def compute(self, graph: Path) -> None:
        """Compute all runs that were asked for."""
        carried = {name.replace(_PAST, _PRESENT): name for name in self._caches}
        segments = Segments(graph, [_LOGITS, _HIDDEN, *carried])
        answers: list[dict[str, np.ndarray]] = [{} for _ in self._runs]
        with progress(graph.stem, segments.sessions * len(answers)) as advance:

            def show(number: str, values: Mapping[str, np.ndarray]) -> None:
                answers[int(number)] |= {name: values[name] for name in (_LOGITS, _HIDDEN) if name in values}
                advance(1)

            runs = {str(number): fed for number, fed in enumerate(self._runs)}
            segments.run(self._contract, runs, show, carried=carried)
        self._answers = iter(answers)


@dataclass(frozen=True)
class SegmentedModel:
    """Stands for Thinker or Talker where golden cases are judged."""

    decoder: SegmentedDecoder


@dataclass
class SegmentedSession:
    """Stands for :class:`qwen_omni_onnx.decoder.DecodingSession`.

    Attributes:
        decoder: The decoder.
        lengths: Tokens of each row so far, [batch] int64.
    """

    decoder: SegmentedDecoder
    lengths: np.ndarray

    def prefill(self, inputs_embeds: np.ndarray, attention_mask: np.ndarray) -> DecoderOutput:
        """Read several tokens of each row, padded on the right."""
        return self._run(inputs_embeds, attention_mask.astype(bool).sum(1))

    def step(self, inputs_embeds: np.ndarray) -> DecoderOutput:
        """Read one token of each row, [batch, width]."""
        return self._run(inputs_embeds[:, None], np.ones(len(self.lengths), np.int64))

    def _run(self, inputs_embeds: np.ndarray, new: np.ndarray) -> DecoderOutput:
        total = int(self.lengths.max()) + inputs_embeds.shape[1]
        begins = not self.lengths.any()
        self.lengths = self.lengths + new
        mask = np.arange(total) < self.lengths[:, None]
        found = self.decoder.run(inputs_embeds, mask, new[:, None] - 1, begins=begins)
        return DecoderOutput(found[_LOGITS][:, 0], found[_HIDDEN])
