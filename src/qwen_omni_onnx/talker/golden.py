"""What the stages of the pipeline, and ``verify``, call of the Talker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.decoder_golden import CHECKS, LOGITS, SEQUENCES, WAVEFORMS, checks, complete, yardstick
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.talker.runtime import EMBEDDING, GRAPH, SAMPLING, Talker
from qwen_omni_onnx.thinker.golden import REPLY

__all__ = [
    "CHECKS",
    "LOGITS",
    "SEQUENCES",
    "WAVEFORMS",
    "checks",
    "complete",
    "next_component_inputs",
    "open_graphs",
    "teacher_forced_inputs",
    "yardstick",
]

_CODES = 48  # of a recording: a second
_SAMPLING = Sampling(temperature=SAMPLING.temperature, top_k=SAMPLING.top_k, top_p=SAMPLING.top_p)


def open_graphs(graphs: Mapping[str, Path], folder: Path, threads: int) -> Talker:
    """Return the run-time of a graph file; ``folder`` holds what was exported beside the float32 one."""
    return Talker(graphs[GRAPH], folder / EMBEDDING, read_config(folder), threads)


def teacher_forced_inputs(model: Talker, talker_input: np.ndarray, reply: int = REPLY) -> np.ndarray:
    """Return what the Talker is fed while it speaks, [tokens, width]: the prompt, then code after code.

    Args:
        model: The Talker; it speaks, choosing its codes as it does at work.
        talker_input: What ``next_component_inputs`` of the Thinker gives, [tokens, width].
        reply: Tokens of the Thinker's reply.
    """
    fed_later = reply + 1  # rows that are not part of the prompt: the reply but its first token, the end, and padding
    prompt, rows = talker_input[:-fed_later], talker_input[-fed_later:]
    codes = model.speak(prompt, rows, _SAMPLING, max_new_codes=_CODES)
    return model.teacher_forced_embeddings(prompt, rows, np.fromiter(codes, np.int64))


def next_component_inputs(model: Talker, recording: np.ndarray, reply: int = REPLY) -> np.ndarray:
    """Return the logits of every token of a recording, [tokens, vocabulary]: the best codes are what is heard next.

    How many of its tokens are a ``reply`` makes no difference.
    """
    return model.decoder.forward(recording[None], np.array([len(recording)]))[0][0]
