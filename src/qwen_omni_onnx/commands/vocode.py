"""``qwen-omni-onnx vocode FOLDER CODES.npy OUT.wav``: codec codes to a sound file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qwen_omni_onnx.arrays import read_array
from qwen_omni_onnx.commands.shared import Overwrite, Seed, Variant, require_seed
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.published import require_published
from qwen_omni_onnx.sampler import pick_variant
from qwen_omni_onnx.sound import file as sound_file
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE, open_token2wav, read_limits, read_variants
from qwen_omni_onnx.token2wav.settings import CodeLimits
from qwen_omni_onnx.token2wav.stream import stream
from qwen_omni_onnx.voices import pick, read_voices

__all__ = ["vocode"]

_MAX_CODES = 24 * 60 * 60 * 50  # the sound of a few more fills the 4 GiB of a WAV file


def vocode(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Published folder of token2wav.")],
    codes: Annotated[Path, typer.Argument(metavar="CODES.npy", help="Codes, [codes] integers, 50 a second.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.wav", help=".wav or .flac file to write: mono, 24 kHz.")],
    voice: Annotated[
        str | None,
        typer.Option(help="One of the folder's voices, the first one if none is given; or a folder of your own with "
                     "cond.npy and ref_mel.npy."),
    ] = None,
    variant: Variant = None,
    seed: Seed = 0,
    float32: Annotated[bool, typer.Option("--float32", help="Run float32 graphs, not the INT8 ones.")] = False,
    streamed: Annotated[
        bool, typer.Option("--stream", help="Compute chunk by chunk, as if the codes were still coming.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Turn codec codes into 24 kHz sound."""
    require_seed(seed)
    sound_file.require_sound_file(out, inputs=[codes], overwrite=overwrite)
    require_published(folder, "token2wav")
    spoken = _read_codes(codes, read_limits(folder), streamed)
    voices = read_voices(folder / VOICES)
    speaker = pick(voices, min(voices) if voice is None else voice)
    pick_variant(read_variants(folder), variant)
    model = open_token2wav(folder, quantized=not float32)
    began = time.perf_counter()
    first = None
    samples = 0
    chunks: Iterator[np.ndarray]
    if streamed:
        one_by_one = (spoken[at : at + 1] for at in range(len(spoken)))
        chunks = stream(model, one_by_one, speaker.cond, speaker.ref_mel, seed=seed, variant=variant)
    else:
        chunks = iter([model.speak(spoken, speaker.cond, speaker.ref_mel, seed=seed, variant=variant)])
    with sound_file.writing(out) as write:
        for chunk in chunks:
            first = first or time.perf_counter() - began
            write(chunk)
            samples += len(chunk)
    took = time.perf_counter() - began
    seconds = samples / OUTPUT_SAMPLE_RATE
    print(
        f"{one_line(str(out))}: {seconds:.2f} s of {speaker.name} in {took:.2f} s "
        f"({took / seconds:.2f} s a second); "
        f"first sound after {first:.2f} s"
    )


def _read_codes(path: Path, limits: CodeLimits, streamed: bool) -> np.ndarray:
    """Return a file's codes, [codes] int64; what cannot be spoken is told before the models are hashed."""
    codes = read_array(path)
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        raise UserError(f"{path}: {codes.dtype} {list(codes.shape)}; integers [codes] are needed")
    if len(codes) > _MAX_CODES:
        raise UserError(f"{path}: {len(codes)} codes; a sound file takes {_MAX_CODES}, a day of speech: cut them")
    if not streamed:
        limits.require_number(len(codes))
    limits.require(codes)
    return codes.astype(np.int64)
