"""Replies once on some cores, in a process of its own, whose memory is measured."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import qwen_omni_onnx
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.reply import AudioChunk, ReplyOptions
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE

__all__ = ["measure"]


def measure(models: Path, question: Path, cores: int, tokens: int, codes: int, seed: int) -> dict[str, Any]:
    """Reply to a sound; return the seconds of each part, of the whole reply and up to its first sound, and amounts.

    Parts are those of a reply in turns. A reply before it, which is not counted, warms up.

    Args:
        models: Folder with published components.
        question: The sound.
        cores: Number of cores that this process may use from now on.
        tokens: Tokens after which the text is cut off.
        codes: Codes after which the speech is cut off.
        seed: Seed for sampling.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    clock = Clock()
    with clock.running("loading"):
        bundle = qwen_omni_onnx.load(models, threads=cores)
        parts = bundle.listener, bundle.thinker, bundle.talker, bundle.token2wav
    loading = clock.seconds.pop("loading")
    options = ReplyOptions(max_new_tokens=tokens, max_new_codes=codes, seed=seed)
    for _ in bundle.reply(audio=question, options=options):  # warms up, and keeps the system prompt's prefix
        pass
    clock.restart()
    reply = bundle.reply(audio=question, options=options, clock=clock, in_turns=True)
    samples, first = 0, dict[str, float]()
    for event in reply:
        if isinstance(event, AudioChunk):
            first = first or dict(clock.seconds)
            samples += event.waveform.shape[-1]
    in_turns = clock.elapsed
    clock.restart()
    for _ in bundle.reply(audio=question, options=options):
        pass
    del parts
    return {
        "in_turns": in_turns,
        "side_by_side": clock.elapsed,
        "cores": cores,
        "loading": loading,
        "parts": clock.seconds,
        "first": first,
        "tokens": len(reply.tokens),
        "codes": len(reply.codes),
        "sound_seconds": samples / OUTPUT_SAMPLE_RATE,
    }


if __name__ == "__main__":
    _models, _question, _found, *_numbers = sys.argv[1:]
    artifact.write_json(Path(_found), measure(Path(_models), Path(_question), *map(int, _numbers)))
