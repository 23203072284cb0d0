"""The Thinker's loop, without PyTorch: a prompt of text and sound, to text and to what the Talker reads.

Source: ``Qwen2_5OmniThinkerForConditionalGeneration`` of transformers 5.23. Positions are those of the tokens, as they
are there for text and sound; images and videos have positions of three axes, and are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.generation import eos_token_ids, read_generation_config
from qwen_omni_onnx.decoder import CHUNK_SIZE, Decoder, DecodingSession
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sampling import Sampler, Sampling
from qwen_omni_onnx.thinker.prefix import Prefix, PrefixStore, prefix_tokens
from qwen_omni_onnx.thinker.prompts import EMBEDDING, Prompt, PromptBuilder, joined, number_of

__all__ = [
    "GRAPH",
    "GREEDY",
    "MAX_NEW_TOKENS",
    "GeneratedToken",
    "PrefilledPrompt",
    "PromptReader",
    "Thinker",
    "open_graph",
    "open_thinker",
    "positions",
]

GRAPH = "thinker"
GREEDY = Sampling(greedy=True)
MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class GeneratedToken:
    """One token of a reply.

    Attributes:
        id: Id of the token.
        talker_input: What the Talker reads of it, [width] float32: its hidden state plus its embedding. None for the
            token at which a reply is cut off: as in transformers, nothing is computed of that one.
    """

    id: int
    talker_input: np.ndarray | None


class PrefilledPrompt:
    """A prompt after its prefill, which a reply can be generated from once.

    Args:
        thinker: The Thinker that has read it.
        prompt: The prompt.
        hidden: Hidden states of its tokens, [seq, width] float32.
        session: The session that holds their keys and values.
        logits: Logits of what follows, [vocabulary] float32.
    """

    def __init__(
        self, thinker: Thinker, prompt: Prompt, hidden: np.ndarray, session: DecodingSession, logits: np.ndarray
    ) -> None:
        self.prompt, self.hidden = prompt, hidden
        self._thinker, self._session, self._logits = thinker, session, logits

    def generate(
        self, sampling: Sampling = GREEDY, seed: int = 0, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[GeneratedToken]:
        """Yield the reply; the token that ends it is left out.

        Args:
            sampling: How tokens are chosen.
            seed: Seed for sampling.
            max_new_tokens: Tokens after which the reply is cut off; it is so, too, where no position is left.
        """
        thinker, logits, max_new_tokens = self._thinker, self._logits, min(max_new_tokens, self._session.left + 1)
        sampler = Sampler(sampling, thinker.decoder.vocabulary, self.prompt.ids.tolist(), seed)
        for number in range(max_new_tokens):
            token = sampler.choose(logits)
            if token in thinker.special_tokens.ends:
                return
            if number + 1 == max_new_tokens:
                yield GeneratedToken(token, None)
                return
            embeds = thinker.embedding(token)
            output = self._session.step(embeds[None])
            logits = output.logits[0]
            yield GeneratedToken(token, output.hidden[0, 0] + embeds)


class PromptReader:
    """A prompt that is read part by part, as it comes.

    Args:
        thinker: The Thinker that reads.
        reserve: Tokens that the cache holds from the beginning; it grows where more come.
        chunk_size: Tokens that the graph reads at a time.
        prefix: Tokens at the beginning that are read by themselves, and whose keys and values are kept on disk: the
            first part has at least as many.
    """

    def __init__(self, thinker: Thinker, reserve: int = 0, chunk_size: int = CHUNK_SIZE, prefix: int = 0) -> None:
        self._thinker, self._chunk_size, self._prefix = thinker, chunk_size, prefix
        self._session = thinker.decoder.begin(reserve=reserve)
        self._parts: list[Prompt] = []
        self._hidden: list[np.ndarray] = []
        self._logits = np.zeros(0, np.float32)

    def read(self, part: Prompt) -> None:
        """Read a part, of one token or more.

        Raises:
            UserError: There are more tokens than positions.
        """
        hidden = np.zeros((len(part.ids), self._thinker.decoder.hidden), np.float32)
        there = 0 if self._parts else self._read_prefix(part, hidden)
        if there < len(part.ids):
            embeds, written = part.embeds[None, there:], hidden[None, there:]
            self._logits = self._session.prefill(embeds, None, self._chunk_size, written).logits[0]
        self._parts.append(part)
        self._hidden.append(hidden)

    def finish(self) -> PrefilledPrompt:
        """Return what a reply can be generated from: all parts have been read."""
        prompt, hidden = self._parts[0], self._hidden[0]
        if len(self._parts) > 1:
            prompt, hidden = joined(self._parts), np.concatenate(self._hidden)
        return PrefilledPrompt(self._thinker, prompt, hidden, self._session, self._logits)

    def _read_prefix(self, part: Prompt, hidden: np.ndarray) -> int:
        """Read the prefix, or take what is kept of it; return its number of tokens.

        They are read by themselves, so that what is kept is the same in every bit, and the reply with it.
        """
        tokens, prefixes = self._prefix, self._thinker.prefixes
        if not tokens or prefixes is None:
            return 0
        ids, hidden = part.ids[:tokens], hidden[:tokens]
        kept = prefixes.read(ids)
        if kept and kept.hidden.shape == hidden.shape and kept.keys_and_values.shape[2:3] == (tokens,):
            with contextlib.suppress(UserError):  # of another shape: it was not written by this version
                self._session.resume(kept.keys_and_values)
                hidden[:] = kept.hidden
                return tokens
        self._session.prefill(part.embeds[None, :tokens], None, self._chunk_size, hidden[None])
        prefixes.write(ids, Prefix(hidden, self._session.keys_and_values()))
        return tokens


class Thinker(PromptBuilder):
    """The Thinker's graph, its embedding table, and the loop around them.

    Args:
        graph: File, ``thinker.onnx``, or one of its quantized forms.
        embedding: File, ``token_embedding.npy``.
        config: Content of the checkpoint's ``config.json``.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.
        ends: Tokens that end the reply beside those of ``config.json``: those of ``generation_config.json``.
        prefixes: Where keys and values of system prompts are kept; None keeps none.

    Raises:
        UserError: The files do not fit together.
    """

    def __init__(
        self,
        graph: Path,
        embedding: Path,
        config: Mapping[str, Any],
        threads: int = 0,
        *,
        stop_spinning: bool = False,
        ends: Iterable[int] = (),
        prefixes: PrefixStore | None = None,
    ) -> None:
        self.prefixes = prefixes
        self.decoder = Decoder(graph, positions(config), threads, stop_spinning=stop_spinning)
        super().__init__(config, self.decoder.table(embedding), ends)
        beyond = [token for token in self.special_tokens.ends if token >= self.decoder.vocabulary]
        if beyond:
            raise UserError(
                f"eos_token_id: no token {beyond[0]}; the Thinker's vocabulary has {self.decoder.vocabulary}"
            )

    def prefill(self, prompt: Prompt, reserve: int = 0, chunk_size: int = CHUNK_SIZE) -> PrefilledPrompt:
        """Read a prompt; return what a reply to it can be generated from.

        Args:
            prompt: The prompt.
            reserve: Tokens of the reply that the cache holds from the beginning; it grows where more come.
            chunk_size: Tokens of the prompt that the graph reads at a time.

        Raises:
            UserError: There are more tokens than positions.
        """
        prefix = prefix_tokens(prompt.ids, self.special_tokens)
        reader = PromptReader(self, len(prompt.ids) + reserve, chunk_size, prefix)
        reader.read(prompt)
        return reader.finish()


def open_thinker(folder: Path, *, quantized: bool = True, threads: int = 0, stop_spinning: bool = False) -> Thinker:
    """Open a published folder of the Thinker.

    Args:
        folder: The folder.
        quantized: Whether to open its quantized graph, else the float32 one.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.

    Raises:
        UserError: The folder is not what it should be, or a file in it is not as published.
    """
    graph = published_graphs(folder, GRAPH, [GRAPH], quantized=quantized)[GRAPH]
    prefixes = PrefixStore(f"{artifact.fingerprint(folder)} {graph.name}")
    return open_graph(graph, folder, threads, stop_spinning=stop_spinning, prefixes=prefixes)


def open_graph(
    graph: Path,
    folder: Path,
    threads: int = 0,
    *,
    stop_spinning: bool = False,
    prefixes: PrefixStore | None = None,
) -> Thinker:
    """Open a graph of the Thinker with the files of a folder: embedding table, ``config.json``, generation defaults.

    Args:
        graph: File, ``thinker.onnx``, or one of its quantized forms.
        folder: Folder of the other files.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.
        prefixes: Where keys and values of system prompts are kept; None keeps none.

    Raises:
        UserError: A file is missing, or they do not fit together.
    """
    config, ends = read_config(folder), eos_token_ids(read_generation_config(folder))
    table = folder / EMBEDDING
    return Thinker(graph, table, config, threads, stop_spinning=stop_spinning, ends=ends, prefixes=prefixes)


def positions(config: Mapping[str, Any]) -> int:
    """Return how many positions the Thinker of a ``config.json`` has."""
    return number_of(config.get("thinker_config", {}).get("text_config", {}), "max_position_embeddings")
