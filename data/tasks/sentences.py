"""Questions about texts, for lm-eval's task ``next_sentence``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ask", "questions"]

_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')])\s+")  # space after a sentence, which may end with a quotation mark
_BEFORE, _CHOICES, _FEWEST_WORDS = 4, 4, 4


def questions(texts: Dataset) -> Dataset:
    """Return the questions about all texts of a dataset; lm-eval calls this."""
    from datasets import Dataset

    return Dataset.from_list([question for text in texts["text"] for question in ask(text)])


def ask(text: str) -> Iterator[dict[str, Any]]:
    """Yield for each sentence of a text which one follows the four before it: it, or one of three others of the text.

    Sentences of fewer than four words are no choices, and a text with fewer than four choices has no question. The
    right one stands in each place in turn.
    """
    sentences = [" ".join(sentence.split()) for sentence in _END.split(text.strip())]
    asked = [place for place in range(_BEFORE, len(sentences)) if len(sentences[place].split()) >= _FEWEST_WORDS]
    if len(asked) < _CHOICES:
        return
    for number, place in enumerate(asked):
        others = _elsewhere(asked, number)
        right = number % _CHOICES
        choices = [sentences[other] for other in others]
        choices.insert(right, sentences[place])
        context = " ".join(sentences[place - _BEFORE : place])
        yield {"context": context, "choices": choices, "right": right}


def _elsewhere(asked: Sequence[int], number: int) -> list[int]:
    """Return sentences that are as far away from one as they can be, and from each other."""
    return [asked[(number + step * len(asked) // _CHOICES) % len(asked)] for step in range(1, _CHOICES)]
