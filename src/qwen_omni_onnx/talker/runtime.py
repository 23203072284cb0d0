"""The Talker's loop: transformers' ``talker.generate``, without PyTorch, from what the Thinker says to codec codes.

The Talker's prompt is, for each token of the Thinker's, its hidden state plus its embedding; then the voice's own
token; then the first token of the reply. After that it reads one token of the reply a step, long before it has spoken
it, then the end of the text, then padding for as long as it goes on.

Source: ``Qwen2_5OmniForConditionalGeneration.generate`` and ``Qwen2_5OmniTalkerForConditionalGeneration.forward`` of
transformers 5.23. One thing differs. ``forward`` adds the codec's padding and start to the last two tokens of the
prompt where it is given a mask; since https://github.com/huggingface/transformers/pull/48814, ``generate`` drops a mask
without padding, so that a batch of one never gets them. Here every reply gets them, as in a padded batch, and as in
every version before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.decoder import CHUNK_SIZE, Decoder, DecodingSession
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sampling import Sampler, Sampling

__all__ = [
    "CODES_A_SECOND",
    "EMBEDDING",
    "GRAPH",
    "MAX_NEW_CODES",
    "SAMPLING",
    "Talker",
    "open_talker",
    "positions",
    "talker_prompt",
    "talker_reply",
]

GRAPH, EMBEDDING = "talker", "codec_embedding.npy"
SAMPLING = Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
CODES_A_SECOND = 50
MAX_NEW_CODES = 4096  # 82 seconds


def talker_prompt(
    hidden: np.ndarray, embeds: np.ndarray, audio_mask: np.ndarray, voice: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """Return the Talker's prompt, [seq + 2, width] float32.

    Args:
        hidden: The Thinker's hidden states of its prompt, [seq, width].
        embeds: The embeddings that it was given there, [seq, width].
        audio_mask: Where these are of sound, [seq] bool: the Talker reads the hidden states alone there.
        voice: Embedding of the voice's ``bos_token``, [width].
        first: Hidden state plus embedding of the reply's first token, [width].
    """
    prompt = np.empty((len(hidden) + 2, hidden.shape[1]), np.float32)  # of ten minutes, 215 MB: made once
    seen = prompt[:-2]
    seen[:] = hidden
    np.add(seen, embeds, out=seen, where=~audio_mask[:, None])
    prompt[-2], prompt[-1] = voice, first
    return prompt


def talker_reply(rows: Iterable[np.ndarray], end: np.ndarray, padding: np.ndarray) -> Iterator[np.ndarray]:
    """Yield what the Talker reads step by step, each [width].

    Args:
        rows: Hidden state plus embedding of each token of the reply, from its second to the one before the last, which
            ends it. They may be computed while the Talker speaks.
        end: Embedding of ``tts_text_end_token_id``.
        padding: Embedding of ``tts_text_pad_token_id``.
    """
    yield from rows
    yield end
    yield padding


class Talker:
    """The Talker's graph, its codec embedding, and the loop around them.

    Args:
        graph: File, ``talker.onnx``, or one of its quantized forms.
        codec_embedding: File, ``codec_embedding.npy``.
        config: Content of the checkpoint's ``config.json``.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.

    Raises:
        UserError: The files do not fit together.
    """

    def __init__(
        self,
        graph: Path,
        codec_embedding: Path,
        config: Mapping[str, Any],
        threads: int = 0,
        *,
        stop_spinning: bool = False,
    ) -> None:
        settings = config.get("talker_config", {})
        self._pad, self._start, self._end, self._mask = (
            _setting(settings, f"tts_codec_{name}_token_id") for name in ("pad", "start", "end", "mask")
        )
        self.ends = (self._pad, self._end)  # either of these codes ends speech
        self.decoder = Decoder(graph, positions(config), threads, stop_spinning=stop_spinning)
        self.embedding = self.decoder.table(codec_embedding)

    def speak(
        self,
        prompt: np.ndarray,
        reply: Iterable[np.ndarray],
        sampling: Sampling = SAMPLING,
        seed: int = 0,
        max_new_codes: int = MAX_NEW_CODES,
        chunk_size: int = CHUNK_SIZE,
    ) -> Iterator[int]:
        """Yield codes, 50 of them a second of speech, until the Talker ends.

        Args:
            prompt: Prompt, [seq, width] float32: see :func:`talker_prompt`.
            reply: Rows of the reply: see :func:`talker_reply`. One is read a step, and the last one again and again.
            sampling: How codes are chosen. The one that starts speech never is.
            seed: Seed for sampling.
            max_new_codes: Codes after which speech is cut off; it is so, too, where no position is left.
            chunk_size: Tokens of the prompt that the graph reads at a time.

        Raises:
            UserError: Shapes do not fit, there is no reply, or the prompt has more tokens than there are positions.
        """
        width = self.decoder.width
        if prompt.ndim != 2 or prompt.shape[0] < 2 or prompt.shape[1] != width:
            raise UserError(f"the Talker's prompt is {list(prompt.shape)}, not [2 or more, {width}]")
        sampling = replace(sampling, suppressed=(*sampling.suppressed, self._start))
        codec = [self._mask] * (len(prompt) - 2) + [self._pad, self._start]
        sampler = Sampler(sampling, self.decoder.vocabulary, codec, seed)
        session = self.decoder.begin(reserve=len(prompt) + max_new_codes)
        logits = self._read(session, prompt, chunk_size)
        del prompt  # of a long sound, hundreds of megabytes
        max_new_codes = min(max_new_codes, session.left + 1)  # nothing is computed of the last one
        rows = iter(reply)
        row: np.ndarray | None = None
        for number in range(max_new_codes):
            code = sampler.choose(logits[0])
            if code in self.ends:
                return
            yield code
            if number + 1 == max_new_codes:
                return
            row = next(rows, row)
            if row is None or row.shape != (width,):
                raise UserError(f"the reply has no rows of [{width}]; give one for each token, and one for its end")
            logits = session.step((self.embedding(code) + row)[None]).logits

    def teacher_forced_embeddings(self, prompt: np.ndarray, reply: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return what the graph is fed while these codes are spoken, [seq + codes - 1, width] float32.

        Args:
            prompt: Prompt, as :meth:`speak` takes it.
            reply: Rows of the reply, as an array [tokens, width].
            codes: Codes, [codes] int64; nothing is fed of the last one.
        """
        fed = codes[:-1]
        rows = reply[np.minimum(np.arange(len(fed)), len(reply) - 1)]
        return np.concatenate([self._begun(prompt), self.embedding(fed) + rows])

    def _read(self, session: DecodingSession, prompt: np.ndarray, chunk_size: int) -> np.ndarray:
        """Take in a prompt [seq, width], and copy nothing of it but its last chunk; return its logits."""
        before = max(0, len(prompt) - 2) // chunk_size * chunk_size
        if before:
            session.prefill(prompt[None, :before], chunk_size=chunk_size)
        return session.prefill(self._begun(prompt[before:])[None], chunk_size=chunk_size).logits

    def _begun(self, prompt: np.ndarray) -> np.ndarray:
        """Add the codec's padding and start to the last two tokens of a prompt."""
        embeds = np.array(prompt, np.float32)
        embeds[-2:] += self.embedding(np.array([self._pad, self._start]))
        return embeds


def open_talker(folder: Path, *, quantized: bool = True, threads: int = 0, stop_spinning: bool = False) -> Talker:
    """Open a published folder of the Talker.

    Args:
        folder: The folder.
        quantized: Whether to open its quantized graph, else the float32 one.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning: see :func:`qwen_omni_onnx.common.session.open_session`.

    Raises:
        UserError: The folder is not what it should be, or a file in it is not as published.
    """
    graphs = published_graphs(folder, GRAPH, [GRAPH], quantized=quantized)
    return Talker(graphs[GRAPH], folder / EMBEDDING, read_config(folder), threads, stop_spinning=stop_spinning)


def positions(config: Mapping[str, Any]) -> int:
    """Return how many positions the Talker of a ``config.json`` has."""
    return _setting(config.get("talker_config", {}), "max_position_embeddings")


def _setting(settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    if type(value) is not int or value < 0:
        raise UserError(
            f"config.json: talker_config.{name} is {value!r}, not a number; take the checkpoint's own config.json"
        )
    return value
