"""Compares what was understood with what was said: errors of words, or of characters where words are not separated.

Before, both are normalized alike: Unicode's NFKC, lower case, no punctuation or symbols, one space between words.
Numbers stay as they are written, so that "8" and "eight" differ: a recognizer writes those of both chains the same way,
and the difference between chains is what counts.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

__all__ = ["BY_CHARACTER", "Errors", "errors", "normalize"]

BY_CHARACTER = frozenset({"ja", "ko", "lo", "my", "km", "th", "yue", "zh"})
_APOSTROPHES = {"\u2019": "'", "\u02bc": "'", "\uff07": "'"}


@dataclass(frozen=True)
class Errors:
    """Errors of a transcript.

    Attributes:
        wrong: Words or characters that were substituted, left out, or added.
        length: Words or characters that were said.
    """

    wrong: int
    length: int


def normalize(text: str) -> str:
    """Return a text without case, punctuation and symbols, in which one space separates words.

    An apostrophe inside a word stays: "it's" is not "its".
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    for other, plain in _APOSTROPHES.items():
        folded = folded.replace(other, plain)
    kept = []
    for place, character in enumerate(folded):
        inside = character == "'" and folded[place - 1 : place].isalpha() and folded[place + 1 : place + 2].isalpha()
        kept.append(" " if unicodedata.category(character)[0] in "PSCZ" and not inside else character)
    return " ".join("".join(kept).split())


def errors(said: str, understood: str, language: str) -> Errors:
    """Count the errors of a transcript by edit distance (jiwer).

    Args:
        said: Text that was said.
        understood: Transcript.
        language: Language as in ISO 639, such as ``en``; those of :data:`BY_CHARACTER` are compared by character.
    """
    import jiwer

    reference, found = normalize(said), normalize(understood)
    by_character = language.split("-")[0] in BY_CHARACTER
    if by_character:
        reference, found = reference.replace(" ", ""), found.replace(" ", "")
    if not reference:  # jiwer refuses it: all that was understood was added
        return Errors(len(found) if by_character else len(found.split()), 0)
    counted = jiwer.process_characters(reference, found) if by_character else jiwer.process_words(reference, found)
    length = counted.hits + counted.substitutions + counted.deletions
    return Errors(counted.substitutions + counted.deletions + counted.insertions, length)
