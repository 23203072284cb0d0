"""Choosing the next token, as transformers' ``generate`` does: its logits processors, in its order, in NumPy.

Repetition penalty (Keskar et al. 2019, CTRL, arXiv 1909.05858), suppressed tokens; then, unless the best token is
taken, temperature, the ``top_k`` best, and of these as many as make up ``top_p`` of the probability (Holtzman et al.
2020, arXiv 1904.09751).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.generation import sampling_settings
from qwen_omni_onnx.common.text import GENERATION

__all__ = ["Sampler", "Sampling", "checkpoint_sampling"]

_LEAST = 1e-15  # of a factor; float32 holds logits that are multiplied and divided by such ones


@dataclass(frozen=True)
class Sampling:
    """How to choose.

    Attributes:
        greedy: Whether always to take the best token; temperature, ``top_k`` and ``top_p`` then do nothing.
        temperature: Temperature that logits are divided by.
        top_k: Number of the best tokens to choose from; 0 is all.
        top_p: Share of the probability that the tokens to choose from make up together; at least one is left.
        repetition_penalty: Penalty that the logits of tokens that were seen are divided by, or multiplied where they
            are negative.
        suppressed: Tokens that are never chosen.

    Raises:
        UserError: A value is impossible.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (
            ("temperature", _LEAST <= self.temperature <= 1 / _LEAST),
            ("top_k", self.top_k >= 0),
            ("top_p", 0 < self.top_p <= 1),
            ("repetition_penalty", _LEAST <= self.repetition_penalty <= 1 / _LEAST),
        ):
            if not allowed:
                raise UserError(f"sampling: {name} cannot be {getattr(self, name)}")


def checkpoint_sampling(table: Mapping[str, Any]) -> Sampling:
    """Return how a checkpoint wants tokens to be chosen.

    Args:
        table: Content of ``generation_config.json``; it is empty if the checkpoint has none: the best token is taken
            then.

    Raises:
        UserError: See :func:`qwen_omni_onnx.common.generation.sampling_settings`; or a value is impossible.
    """
    settings = sampling_settings(table)
    try:
        return Sampling(**settings)
    except UserError as error:
        raise UserError(f"{GENERATION}: {error}") from None


class Sampler:
    """Chooses the tokens of one row, one after the other.

    Args:
        sampling: How tokens are chosen.
        vocabulary: Number of tokens.
        prompt: Tokens that count as seen from the beginning. Some may lie beyond the vocabulary: placeholders.
        seed: Seed for sampling: the same seed and logits give the same tokens.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, prompt: Iterable[int] = (), seed: int = 0) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(seed)
        self._seen = np.zeros(vocabulary, bool)
        self._seen[[token for token in prompt if 0 <= token < vocabulary]] = True
        outside = [token for token in sampling.suppressed if not 0 <= token < vocabulary]
        if outside:
            raise UserError(f"sampling: suppressed: no token {outside[0]}; there are {vocabulary}")
        self._suppressed = list(sampling.suppressed)

    def candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that can be chosen, ascending, and their scores: logits after all that is done to them.

        Args:
            logits: Logits, [vocabulary] float32.

        Raises:
            UserError: A logit is NaN, or none is finite: there is nothing to choose from.
        """
        how = self._sampling
        scores = np.array(logits, np.float32)
        if how.repetition_penalty != 1:
            penalty, seen = np.float32(how.repetition_penalty), scores[self._seen]
            scores[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
        scores[self._suppressed] = -np.inf
        if not np.isfinite(scores.max()):  # of which NaN is the greatest
            raise UserError(
                "logits hold NaN or infinity, or every token is suppressed; look at the weights and the input"
            )
        if how.greedy:
            best = np.array([scores.argmax()])
            return best, scores[best]
        scores /= np.float32(how.temperature)
        # First the k best, found without sorting the vocabulary: that would take five times as long as all the rest.
        least = np.partition(scores, -how.top_k)[-how.top_k] if 0 < how.top_k < len(scores) else -np.inf
        tokens = np.flatnonzero((scores >= least) & (scores > -np.inf))
        scores = scores[tokens]
        if how.top_p < 1:
            ascending = np.argsort(scores, kind="stable")
            below = np.cumsum(_softmax(scores[ascending])) <= 1 - how.top_p
            below[-1] = False
            kept = np.sort(ascending[~below])
            tokens, scores = tokens[kept], scores[kept]
        return tokens, scores

    def choose(self, logits: np.ndarray) -> int:
        """Return the next token, and count it as seen. Raises as ``candidates`` does."""
        tokens, scores = self.candidates(logits)
        cumulative = np.cumsum(_softmax(scores))
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        self._seen[tokens[drawn]] = True
        return int(tokens[drawn])


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Return probabilities, float64."""
    powers = np.exp((scores - scores.max()).astype(np.float64))
    return powers / powers.sum()
