"""What the Thinker says, to codec codes: transformers' ``talker.generate``, without PyTorch.

The Talker's prompt is, for each token of the Thinker's, its hidden state plus its embedding; then the voice's own
token; then the first token of the reply. After that it hears one token of the reply a step, long before it has said it,
then the end of the text, then padding for as long as it goes on.

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
from qwen_omni_onnx.decoder import PIECE, Decoder, DecodingSession
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sampling import Sampler, Sampling

__all__ = ["EMBEDDING", "GRAPH", "SAMPLING", "Talker", "open_published", "positions", "talker_prompt", "talker_reply"]

GRAPH, EMBEDDING = "talker", "codec_embedding.npy"
SAMPLING = Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
MAX_NEW_CODES = 4096  # 82 seconds


def talker_prompt(
    hidden: np.ndarray, embeds: np.ndarray, heard: np.ndarray, voice: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """Return the Talker's prompt, [seq + 2, width] float32.

    Args:
        hidden: the Thinker's hidden states of its prompt, [seq, width].
        embeds: the embeddings that it was given there, [seq, width].
        heard: where these were of sound, [seq] bool: the Talker is not to hear it a second time.
        voice: embedding of the voice's ``bos_token``, [width].
        first: hidden state plus embedding of the reply's first token, [width].
    """
    prompt = np.empty((len(hidden) + 2, hidden.shape[1]), np.float32)  # of ten minutes, 215 MB: made once
    seen = prompt[:-2]
    seen[:] = hidden
    np.add(seen, embeds, out=seen, where=~heard[:, None])
    prompt[-2], prompt[-1] = voice, first
    return prompt


def talker_reply(rows: Iterable[np.ndarray], end: np.ndarray, padding: np.ndarray) -> Iterator[np.ndarray]:
    """Yield what the Talker hears step by step, each [width].

    Args:
        rows: hidden state plus embedding of each token of the reply, from its second to the one before the last, which
            ends it. May be computed while the Talker speaks.
        end: embedding of ``tts_text_end_token_id``.
        padding: embedding of ``tts_text_pad_token_id``.
    """
    yield from rows
    yield end
    yield padding


class Talker:
    """The Talker's graph, its codec embedding, and the loop around them.

    Args:
        graph: ``talker.onnx``, or one of its quantized forms.
        codec_embedding: ``codec_embedding.npy``.
        config: the checkpoint's ``config.json``.
        threads: as for :func:`qwen_omni_onnx.common.session.open_session`.
        stop_spinning: as for that.

    Raises:
        UserError: they do not fit together.
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
        most: int = MAX_NEW_CODES,
        piece: int = PIECE,
    ) -> Iterator[int]:
        """Yield codes, 50 of them a second of speech, until the Talker ends.

        Args:
            prompt: see :func:`talker_prompt`, [seq, width] float32.
            reply: see :func:`talker_reply`; one is taken a step, and the last one stays.
            sampling: how codes are chosen. The one that starts speech never is.
            seed: of the choices.
            most: codes, after which it is cut off; as it is where no position is left.
            piece: tokens of the prompt to take in at a time.

        Raises:
            UserError: shapes do not fit, there is no reply, or the prompt has more tokens than there are positions.
        """
        width = self.decoder.width
        if prompt.ndim != 2 or prompt.shape[0] < 2 or prompt.shape[1] != width:
            raise UserError(f"the Talker's prompt is {list(prompt.shape)}, not [2 or more, {width}]")
        how = replace(sampling, suppressed=(*sampling.suppressed, self._start))
        codec = [self._mask] * (len(prompt) - 2) + [self._pad, self._start]
        sampler = Sampler(how, self.decoder.vocabulary, codec, seed)
        conversation = self.decoder.begin(room=len(prompt) + most)
        logits = self._read(conversation, prompt, piece)
        del prompt  # of a long sound, hundreds of megabytes
        most = min(most, conversation.left + 1)  # nothing is computed of the last one
        rows = iter(reply)
        row: np.ndarray | None = None
        for number in range(most):
            code = sampler.choose(logits[0])
            if code in self.ends:
                return
            yield code
            if number + 1 == most:
                return
            row = next(rows, row)
            if row is None or row.shape != (width,):
                raise UserError(f"the reply has no rows of [{width}]; give one for each token, and one for its end")
            logits = conversation.step((self.embedding(code) + row)[None]).logits

    def teacher_forced_embeddings(self, prompt: np.ndarray, reply: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return what the graph is fed while these codes are spoken, [seq + codes - 1, width] float32.

        Args:
            prompt: as :meth:`speak` takes it.
            reply: the same, as an array [tokens, width].
            codes: [codes] int64; nothing is fed of the last one.
        """
        said = codes[:-1]
        heard = reply[np.minimum(np.arange(len(said)), len(reply) - 1)]
        return np.concatenate([self._begun(prompt), self.embedding(said) + heard])

    def _read(self, conversation: DecodingSession, prompt: np.ndarray, piece: int) -> np.ndarray:
        """Take in a prompt [seq, width], and nothing of it is copied but its last piece; return its logits."""
        before = max(0, len(prompt) - 2) // piece * piece
        if before:
            conversation.prefill(prompt[None, :before], piece=piece)
        return conversation.prefill(self._begun(prompt[before:])[None], piece=piece).logits

    def _begun(self, prompt: np.ndarray) -> np.ndarray:
        """Add the codec's padding and start to the last two tokens of a prompt."""
        embeds = np.array(prompt, np.float32)
        embeds[-2:] += self.embedding(np.array([self._pad, self._start]))
        return embeds


def open_published(folder: Path, *, quantized: bool = True, threads: int = 0, stop_spinning: bool = False) -> Talker:
    """Open a published folder of the Talker.

    Args:
        folder: which.
        quantized: its quantized graph, else the float32 one.
        threads: as for :func:`qwen_omni_onnx.common.session.open_session`.
        stop_spinning: as for that.

    Raises:
        UserError: the folder is not what it should be, or a file in it is not as published.
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
