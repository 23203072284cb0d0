"""Measure what a long sound takes beyond the models: ``python -m benchmarks.long_sound``.

It strings held-out clips together to ten minutes of sound and lets ``python -m qwen_omni_onnx`` reply with a few
tokens and a second of speech. It prints the time and the peak memory of that process, beside those of the same command
on two seconds of sound, which take little beside the models.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.decoder.bench import cache_bytes
from benchmarks.report import HELD_OUT_SPEECH, PUBLISHED, JsonFile, Models, Overwrite, Speech, json_file, print_table
from components import talker, thinker
from omni.resources import machine, measure_module
from qwen_omni_onnx.bundle import published
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, clips, embeddings, read_audio

__all__ = ["main", "sound_of"]

SHORT = 2.0  # seconds of sound, which take little beside the models
MOST_MINUTES = 21  # the 32,768 positions of the decoders end there
GOAL = 2e9  # bytes that ten minutes may take beyond the models
_DECODERS = (thinker, talker)  # both read the prompt and cache its keys and values
_REPLY = ("--overwrite", "--max-tokens", "8", "--max-seconds", "1")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="Length of the sound in minutes.")] = 10.0,
    models: Models = PUBLISHED,
    speech: Speech = HELD_OUT_SPEECH,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the time and the memory that a long sound takes beyond the models."""
    json = json_file(json, overwrite=overwrite, inputs=[models, speech])
    if not 0 < minutes <= MOST_MINUTES:
        raise UserError(f"--minutes: {minutes:g}; give more than 0, and at most {MOST_MINUTES}")
    caches = {module.COMPONENT.name: _cache(module, models, minutes) for module in _DECODERS}
    with tempfile.TemporaryDirectory(prefix="long-sound-") as folder:
        # The short one first: it also hashes the models, which later runs of the command need not do again.
        short, long = (_measured(seconds, models, speech, Path(folder)) for seconds in (SHORT, 60 * minutes))
    found = {
        "machine": machine(),
        "short": short,
        "long": long,
        "tokens": embeddings(round(60 * minutes * INPUT_SAMPLE_RATE)),
        "above_bytes": long["peak_bytes"] - short["peak_bytes"],
        "caches": caches,
    }
    _print(found)
    if json:
        artifact.write_json(json, found)


def sound_of(seconds: float, folder: Path) -> np.ndarray:
    """Return a folder's clips one after another, repeated up to a length: [samples] float32 at 16 kHz.

    Args:
        seconds: Length.
        folder: Folder of clips.

    Raises:
        UserError: There is no clip, or one that cannot be read.
    """
    return np.resize(np.concatenate([read_audio(path) for path in clips(folder)]), round(seconds * INPUT_SAMPLE_RATE))


def _measured(seconds: float, models: Path, clips_folder: Path, folder: Path) -> dict[str, float]:
    """Reply to a sound in a process of its own; return the sound's length, and time and peak memory of that process."""
    import soundfile

    question = folder / "question.wav"
    soundfile.write(question, sound_of(seconds, clips_folder), INPUT_SAMPLE_RATE)
    began = time.perf_counter()
    peak = measure_module(
        "qwen_omni_onnx", "speak", str(question), str(folder / "reply.wav"), "--models", str(models), *_REPLY
    )
    return {"sound_seconds": seconds, "seconds": time.perf_counter() - began, "peak_bytes": peak}


def _cache(module: Any, models: Path, minutes: float) -> dict[str, int]:
    """Return the number of layers of a published decoder, and the bytes of its keys and values of a sound."""
    name = module.COMPONENT.name
    folder = next((place for place, manifest in published(models).items() if manifest.get("component") == name), None)
    if folder is None:
        raise UserError(f"{models}: no published {name} in it; run make repro, or give another folder")
    size = module.DECODER.sizes(read_config(folder))
    return {"layers": size.layers, "bytes": cache_bytes(size, embeddings(round(60 * minutes * INPUT_SAMPLE_RATE)))}


def _print(found: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    rows = [
        [f"{run['sound_seconds']:g} s of sound", f"{run['seconds']:.1f} s", f"{run['peak_bytes'] / 1e6:,.0f} MB"]
        for run in (found["short"], found["long"])
    ]
    print_table([["python -m qwen_omni_onnx", "time", "peak memory"], *rows])
    print(
        f"\n{found['tokens']:,} embeddings of sound take {found['above_bytes'] / 1e6:,.0f} MB beyond the models; "
        f"goal, of ten minutes: at most {GOAL / 1e6:,.0f} MB"
    )
    for name, cache in found["caches"].items():
        print(f"  of that, keys and values of the {name}'s {cache['layers']} layers: {cache['bytes'] / 1e6:,.0f} MB")


if __name__ == "__main__":
    run_app(app)
