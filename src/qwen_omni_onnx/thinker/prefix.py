"""What prompts begin with, the system prompt, is nearly always the same: its keys and values are kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.user_cache import cache_folder
from qwen_omni_onnx.thinker.prompts import SpecialTokens

__all__ = ["Prefix", "PrefixStore", "prefix_tokens"]

_FOLDER, _KEPT = "prefixes", 8  # files: a system prompt is 7 MB at the 7B's width and depth
_LONGEST = 512  # tokens; 60 MB


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a decoder keeps of the tokens that it has read.

    Attributes:
        hidden: Their hidden states, [tokens, width] float32.
        keys_and_values: Their keys and values, [caches, heads, tokens, head] float32.
    """

    hidden: np.ndarray
    keys_and_values: np.ndarray


class PrefixStore:
    """Prefixes on disk, in ``$XDG_CACHE_HOME/qwen-omni-onnx/prefixes``: the eight that were written last.

    Where there is no such place, or none to write to, nothing is kept.

    Args:
        graph: What identifies the graph whose keys and values they are: a hash over all of its bytes.
    """

    def __init__(self, graph: str) -> None:
        self._graph = graph

    def read(self, ids: np.ndarray) -> Prefix | None:
        """Return the prefix of these tokens, [tokens] int64; None if it is not there, or not as it was written."""
        path = self._path(ids)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return Prefix(arrays["hidden"], arrays["keys_and_values"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # zipfile checks a sum of every byte
            return None

    def write(self, ids: np.ndarray, prefix: Prefix) -> None:
        """Keep a prefix, if there is room; the oldest ones go."""
        path = self._path(ids)
        if path is None:
            return
        with contextlib.suppress(OSError, UserError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with output.writing(path) as beside, beside.open("wb") as file:
                np.savez(file, hidden=prefix.hidden, keys_and_values=prefix.keys_and_values)
            by_age = sorted(path.parent.glob("*.npz"), key=lambda kept: kept.stat().st_mtime, reverse=True)
            for old in by_age[_KEPT:]:
                old.unlink(missing_ok=True)

    def _path(self, ids: np.ndarray) -> Path | None:
        folder = cache_folder()
        name = hashlib.sha256(self._graph.encode() + ids.astype("<i8").tobytes()).hexdigest()
        return folder / _FOLDER / f"{name}.npz" if folder else None


def prefix_tokens(ids: np.ndarray, special: SpecialTokens) -> int:
    """Return how many tokens of a prompt are its prefix: the first turn, if it is of text, and not too long.

    Args:
        ids: Tokens of the whole prompt, [seq] int64.
        special: What the checkpoint's special tokens are.
    """
    turns = np.flatnonzero(ids == special.begin)
    length = int(turns[1]) if len(turns) > 2 else 0  # a question alone has two: its own turn, and the reply's
    return length if length <= _LONGEST and not (ids[:length] == special.sound).any() else 0
