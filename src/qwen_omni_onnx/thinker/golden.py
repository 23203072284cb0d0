"""What the stages of the pipeline, and ``verify``, call of the Thinker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.decoder_golden import CHECKS, LOGITS, SEQUENCES, WAVEFORMS, checks, complete, yardstick
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.thinker.runtime import GRAPH, Thinker, open_graph

__all__ = [
    "CHECKS",
    "LOGITS",
    "REPLY",
    "SEQUENCES",
    "WAVEFORMS",
    "checks",
    "complete",
    "next_component_inputs",
    "open_graphs",
    "teacher_forced_inputs",
    "yardstick",
]

REPLY = 8  # tokens of the reply that the recording of a sound ends with


def open_graphs(graphs: Mapping[str, Path], folder: Path, threads: int) -> Thinker:
    """Return the run-time of a graph file; ``folder`` holds what was exported beside the float32 one."""
    return open_graph(graphs[GRAPH], folder, threads)


def teacher_forced_inputs(model: Thinker, sound: np.ndarray, reply: int = REPLY) -> np.ndarray:
    """Return what the Thinker reads while it replies to a sound, [tokens, width]: the prompt, then its own best tokens.

    Args:
        model: Model that replies; it is not to end before, so that all recordings are of one form.
        sound: Embeddings of the encoder, [embeddings, width].
        reply: Tokens of the reply.
    """
    prompt = model.prompt_of_sound(sound)
    sampling = Sampling(greedy=True, suppressed=model.special_tokens.ends)
    tokens = [token.id for token in model.prefill(prompt, reserve=reply).generate(sampling, max_new_tokens=reply)]
    return np.concatenate([prompt.embeds, model.embedding(np.array(tokens))])


def next_component_inputs(model: Thinker, recording: np.ndarray, reply: int = REPLY) -> np.ndarray:
    """Return what the Talker is told of a recording, [tokens + 3, width].

    That is, for each token its hidden state, and its embedding unless it is sound; before the reply the mark that
    speech begins (a voice's own comes with the voices, which are another component's); after it, the end of the text
    and padding.

    Args:
        model: The Thinker.
        recording: What it was fed, [tokens, width].
        reply: Tokens at the end of the recording that are the reply.

    Raises:
        UserError: The recording has no token before the reply.
    """
    if len(recording) <= reply:
        raise UserError(
            f"a recording of {len(recording)} tokens; {reply} of a reply end it, and some must be before them"
        )
    hidden = model.decoder.begin(reserve=len(recording)).prefill(recording[None]).hidden
    special = model.special_tokens
    audio_mask = _between(recording, model.embedding(special.sound_begins), model.embedding(special.sound_ends))
    rows = hidden[0] + np.where(audio_mask[:, None], np.float32(0), recording)
    begins, *ends = (model.embedding(token) for token in model.tts_tokens)
    return np.concatenate([rows[:-reply], begins[None], rows[-reply:], np.stack(ends)])


def _between(rows: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which of the rows [tokens, width] lie between a first and a last one that equal these, [tokens]."""
    opened = np.flatnonzero((rows == begins).all(1))
    closed = np.flatnonzero((rows == ends).all(1))
    audio_mask = np.zeros(len(rows), bool)
    if len(opened) and len(closed):
        audio_mask[opened[0] + 1 : closed[-1]] = True
    return audio_mask
