"""Measure what it gains to hear a question while it is asked, and what it changes: ``python -m benchmarks.live``.

The time to the first sound is counted from the question's end, of the question as a whole and of the same one heard
live, in turns. What the encoder gives is compared clip by clip: a block is measured by the loudest feature so far, one
of a whole clip by the loudest of all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import typer

import qwen_omni_onnx
from benchmarks.long_sound import sound_of
from benchmarks.report import (
    HELD_OUT_SPEECH,
    PUBLISHED,
    JsonFile,
    Models,
    Overwrite,
    Speech,
    json_file,
    number,
    print_table,
)
from omni.resources import machine
from qwen_omni_onnx.bundle import Bundle
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.reply import AudioChunk, Reply, ReplyOptions
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, clips, read_audio
from qwen_omni_onnx.sound.live import LiveSound

__all__ = ["main"]

_GREEDY = Sampling(greedy=True)
_OPTIONS = ReplyOptions(thinker=_GREEDY, talker=_GREEDY, max_new_tokens=32, max_new_codes=50)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    models: Models = PUBLISHED,
    speech: Speech = HELD_OUT_SPEECH,
    seconds: Annotated[float, typer.Option(help="Length of the question in seconds.", min=0.1, max=60)] = 7.0,
    rounds: Annotated[int, typer.Option(help="Replies of each kind.", min=1, max=100)] = 3,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the time to the first sound of a live question, and how far its embeddings are from the whole one's."""
    json = json_file(json, overwrite=overwrite, inputs=[models, speech])
    question, every = sound_of(seconds, speech), {path.name: read_audio(path) for path in clips(speech)}
    bundle = qwen_omni_onnx.load(models)
    found = {
        "machine": machine(),
        "seconds": seconds,
        "first_sound": _first_sounds(bundle, question, rounds),
        "embeddings_db": {name: _distance(bundle, sound) for name, sound in every.items()},
    }
    _print(found)
    if json:
        artifact.write_json(json, found)


def _first_sounds(bundle: Bundle, question: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the median seconds to the first sound, by how the question is heard; a first round warms up."""

    def whole() -> Reply:
        return bundle.reply(audio=(question, INPUT_SAMPLE_RATE), options=_OPTIONS)

    def live() -> Reply:
        asked = bundle.live_question(options=_OPTIONS)
        asked.feed(question)
        return asked.reply()

    ways: Mapping[str, Callable[[], Reply]] = {"whole": whole, "live": live}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, ask in ways.items():
            times[way].append(_first_sound(ask()))
    return {way: statistics.median(taken[1:]) for way, taken in times.items()}


def _first_sound(reply: Reply) -> float:
    for event in reply:
        if isinstance(event, AudioChunk):
            break
    if reply.first_sound is None:
        raise UserError("the reply holds no speech; give another --seconds")
    return reply.first_sound


def _distance(bundle: Bundle, sound: np.ndarray) -> float:
    """Return the SQNR of a clip's embeddings, heard live, against those of the whole clip, in dB."""
    live = LiveSound(bundle.listener)
    heard = [*live.feed(sound), *live.end()]
    return sqnr_db(bundle.listen((sound, INPUT_SAMPLE_RATE)), np.concatenate(heard))


def _print(found: Mapping[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    first = found["first_sound"]
    print(
        f"a question of {found['seconds']:g} s: first sound {first['live']:.2f} s after its end, heard live; "
        f"{first['whole']:.2f} s as a whole, {first['whole'] / first['live']:.2f} times as long"
    )
    rows = [[name, number(db, 1)] for name, db in found["embeddings_db"].items()]
    print_table([["clip", "dB to the whole clip's embeddings"], *rows])


if __name__ == "__main__":
    run_app(app)
