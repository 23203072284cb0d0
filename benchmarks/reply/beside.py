"""A spoken reply beside transformers' own, one after the other in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import qwen_omni_onnx
from benchmarks.measure import speed
from benchmarks.report import number, print_table
from omni.resources import progress
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.cores import usable_cores
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.reply import AudioChunk, ReplyOptions
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.sound.audio import read_audio
from qwen_omni_onnx.token2wav import Window
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
from qwen_omni_onnx.voices import read_voices

__all__ = ["PARTS", "compare", "print_comparison"]

PARTS = ("listening", "thinker", "talker", "token2wav")
_WHOLE = Window(blocks=10**6, first=10**6)
_WARM = 24  # codes of the reply before the first that counts
Replied = dict[str, float]  # seconds of each part, of all, to the first sound, and of the sound itself
Contender = Callable[[int], Replied]  # from the number of codes


def compare(
    models: Path, source: Path, question: Path, dtypes: Sequence[str], tokens: int, codes: int, rounds: int
) -> dict[str, Any]:
    """Let each contender reply to a sound, in turns; return what each took, and how many times as fast it is.

    All are greedy. Ours solve the ODE by their default variant, PyTorch in transformers' own way.

    Args:
        models: Folder with published components.
        source: Folder ``models/source`` of the build that published them.
        question: The sound.
        dtypes: Types of PyTorch's weights; ratios are to the first.
        tokens: Tokens after which a text is cut off.
        codes: Codes after which speech is cut off.
        rounds: Number of rounds.

    Raises:
        UserError: A reply holds no speech.
    """
    contenders = _ours(models, question, tokens)
    for dtype in dtypes:
        contenders[f"PyTorch {dtype}"] = _pytorch(source, question, dtype, tokens)
    taken: dict[str, list[Replied]] = {name: [] for name in contenders}
    with progress("replies", (rounds + 1) * len(contenders)) as advance:
        for turn in range(rounds + 1):
            for name in [*contenders][:: -1 if turn % 2 else 1]:
                found = contenders[name](codes if turn else _WARM)
                if turn and not found["sound"]:
                    raise UserError(f"{models}: the reply by {name} holds no speech, which nothing can be compared by")
                if turn:
                    taken[name].append(found)
                advance(1)
    baseline = _a_second([*taken[f"PyTorch {dtypes[0]}"]])
    return {
        "rounds": rounds,
        "baseline": f"PyTorch {dtypes[0]}",
        "replies": {
            name: {
                **{key: float(np.median([run.get(key, 0.0) for run in runs])) for key in runs[0]},
                "speed": speed(baseline, _a_second(runs)),
            }
            for name, runs in taken.items()
        },
    }


def print_comparison(found: Mapping[str, Any]) -> None:
    """Print a row for each contender."""
    head = ["a reply", "to the first sound, s", *PARTS, "in all", f"times as fast as {found['baseline']}"]
    rows = []
    for name, reply in found["replies"].items():
        parts = [number(reply[part] / reply["sound"], 2) if part in reply else "" for part in PARTS]
        speeds = reply["speed"]
        fast = f"{speeds['speedup']:.2f} ({speeds['low']:.2f} to {speeds['high']:.2f})"
        rows.append([name, number(reply["first"], 2), *parts, number(reply["all"] / reply["sound"], 2), fast])
    print_table([head, *rows])
    print(
        f"\nMedians of {found['rounds']} rounds, greedy; parts and all are seconds for a second of speech. PyTorch's "
        "thinker listens, too, and no\nsound is there before all of it is. Side by side, parts overlap."
    )


def _a_second(runs: Sequence[Replied]) -> list[float]:
    return [run["all"] / run["sound"] for run in runs]


def _ours(models: Path, question: Path, tokens: int) -> dict[str, Contender]:
    bundle = qwen_omni_onnx.load(models)

    def reply(options: ReplyOptions, codes: int) -> Replied:
        clock = Clock()
        events = bundle.reply(audio=question, options=replace(options, max_new_codes=codes), clock=clock)
        samples = sum(event.waveform.size for event in events if isinstance(event, AudioChunk))
        parts = clock.seconds if options.in_turns else {}
        return {
            **parts,
            "all": clock.elapsed,
            "first": events.first_sound or 0.0,
            "sound": samples / OUTPUT_SAMPLE_RATE,
        }

    greedy = Sampling(greedy=True)
    options = ReplyOptions(thinker=greedy, talker=greedy, max_new_tokens=tokens, in_turns=True)
    kinds = {
        "ours, a stream, side by side": replace(options, in_turns=False),
        "ours, a stream, in turns": options,
        "ours, at once": replace(options, window=_WHOLE),
    }
    return {name: partial(reply, chosen) for name, chosen in kinds.items()}


def _pytorch(source: Path, question: Path, dtype: str, tokens: int) -> Contender:
    import torch

    from reference.whole_model import WholeModel, WholeQuestion

    torch.set_num_threads(usable_cores())
    model = WholeModel(source, dtype)
    sound = WholeQuestion(read_audio(question))
    voice = min(read_voices(source / "token2wav" / VOICES))  # the one that ours speaks with

    def reply(codes: int) -> Replied:
        clock = Clock()
        [found] = model.reply([sound], voice=voice, seed=0, max_new_tokens=tokens, max_new_codes=codes, clock=clock)
        took = clock.elapsed
        return {**clock.seconds, "all": took, "first": took, "sound": found.waveform.size / OUTPUT_SAMPLE_RATE}

    return reply
