"""The velocity of mel frames, evaluation by evaluation, by the graph ``dit_step``: piece by piece, nothing twice.

Two of the DiT's layers look back on the block before a frame's own, and no other place of the past is heard. So what a
later piece needs of an earlier one are keys and values of those layers for a single block: the graph takes them in and
gives them out, for each evaluation. They lead from piece to piece of a long utterance, and from part to part of one
whose codes are still to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qwen_omni_onnx.common.parallel import ParallelGraph
from qwen_omni_onnx.token2wav.chunks import chunks

__all__ = ["BRANCHES", "UNSEEN", "DiTVelocity", "without_past"]

UNSEEN = -1e9  # added to a score: its softmax is 0, and a row of nothing else is no NaN
_BLOCKS = 40  # that the DiT sees at once: what is computed on the way then fits a processor's caches
BRANCHES = (slice(0, 1), slice(1, 2))  # the conditioned and the unconditioned one


class DiTVelocity:
    """A function of mel frames and a row of the table of times, to be called once for each evaluation in turn.

    Attributes:
        present: Keys and values of the last block of one's own, [branches, batch, layers, 2, 24, 1024] for each
            evaluation so far: ``past`` of the next part.

    The branches of classifier-free guidance are run side by side, and combined here as the graph combines them.

    Args:
        step: ``dit_step``.
        guidance_scale: Scale of the guidance.
        conditioned: ``condition`` and ``key_bias`` of the utterance, or of its part.
        back: Number of layers that look back.
        ahead: Blocks behind a piece that can reach it through all layers.
        past: ``present`` of the part before; empty: there is none.
        own: Blocks of one's own; those behind them are seen, and belong to the next part. None: all.
    """

    def __init__(
        self,
        step: ParallelGraph,
        guidance_scale: float,
        conditioned: Mapping[str, np.ndarray],
        back: int,
        ahead: int,
        past: Sequence[np.ndarray] = (),
        own: int | None = None,
    ) -> None:
        self.present: list[np.ndarray] = []
        self._step, self._past, self._ahead = step, past, ahead
        self._guidance_scale = np.float32(guidance_scale)
        self._condition, self._bias = conditioned["condition"], conditioned["key_bias"]
        self._first = without_past(conditioned, back)
        self._blocks = self._bias.shape[1]
        self._own = self._blocks if own is None else own

    def __call__(self, mel: np.ndarray, row: int) -> np.ndarray:
        """Return the velocity, of the shape of ``mel`` [batch, blocks, 24, 80], at a row of the table of times."""
        past, past_bias = self._first["past"], self._first["past_bias"]
        if self._past:  # a part ends with whole blocks, all of whose keys are there
            past, past_bias = self._past[len(self.present)], np.zeros_like(past_bias)
        found = []
        for start, end in self._pieces():
            seen, kept = slice(start, min(self._blocks, end + self._ahead)), min(end, self._own) - 1
            shared = {"mel": mel[:, seen], "key_bias": self._bias[:, seen], "past_bias": past_bias}
            fed = {name: np.ascontiguousarray(part) for name, part in shared.items()}
            fed |= {"evaluation": np.array(row), "present_block": np.array(kept - start)}
            condition = np.ascontiguousarray(self._condition[:, :, seen])
            branches = self._step.run(
                {**fed, "condition": condition[branch], "past": past[branch]} for branch in BRANCHES
            )
            conditioned, unconditioned = (branch["velocity"][:, : end - start] for branch in branches)
            found.append(conditioned + (conditioned - unconditioned) * self._guidance_scale)
            past, past_bias = np.concatenate([branch["present"] for branch in branches]), self._bias[:, kept]
        self.present.append(past)
        return np.concatenate(found, 1)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Yield where pieces begin and end; blocks behind one's own go with the last."""
        for start, end in chunks(self._own, _BLOCKS):
            yield start, self._blocks if end == self._own else end


def without_past(conditioned: Mapping[str, np.ndarray], back: int) -> dict[str, np.ndarray]:
    """Return inputs of ``dit_step`` for the beginning of an utterance: no block is before the first.

    Args:
        conditioned: ``condition`` [branches, batch, blocks, 24, 1024] and ``key_bias`` [batch, blocks, 24].
        back: Number of layers that look back.
    """
    branches, batch, _, block, width = conditioned["condition"].shape
    return {
        "past": np.zeros((branches, batch, back, 2, block, width), np.float32),
        "past_bias": np.full((batch, block), UNSEEN, np.float32),
        "present_block": np.array(0),
    }
