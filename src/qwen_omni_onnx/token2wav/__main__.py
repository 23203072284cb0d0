"""Codec codes to a sound file: ``python -m qwen_omni_onnx.token2wav FOLDER CODES.npy OUT.wav``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen_omni_onnx.arguments import Parser, require_seed
from qwen_omni_onnx.arrays import read_array
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError, run_command
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.published import require_published
from qwen_omni_onnx.sampler import REFERENCE, pick_variant
from qwen_omni_onnx.sound import file as sound_file
from qwen_omni_onnx.token2wav.runtime import SAMPLE_RATE, Token2Wav, open_published, read_limits, read_variants
from qwen_omni_onnx.token2wav.settings import CodeLimits
from qwen_omni_onnx.token2wav.stream import Window, stream
from qwen_omni_onnx.voices import pick, read_voices

_MOST = 24 * 60 * 60 * 50  # codes; the sound of a few more fills the 4 GiB of a WAV file


def main() -> None:
    """Speak one file of codes."""
    parser = Parser(prog="python -m qwen_omni_onnx.token2wav", description="Codec codes to 24 kHz sound.")
    parser.add_argument("folder", type=Path, help="published folder of token2wav")
    parser.add_argument("codes", type=Path, help=".npy file of codes: [codes] integers, 50 a second")
    parser.add_argument("out", type=Path, help=".wav or .flac file to write: mono, 24 kHz")
    parser.add_argument("--voice", help="one of the folder's voices, or a folder with cond.npy and ref_mel.npy")
    parser.add_argument("--variant", default=REFERENCE, help=f"way to solve the ODE; {REFERENCE} if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the noise: the same one gives the same sound")
    parser.add_argument("--float32", action="store_true", help="the float32 graphs instead of the INT8 ones")
    parser.add_argument("--stream", action="store_true", help="in pieces, as if the codes were still coming")
    parser.add_argument("--overwrite", action="store_true", help="OUT may replace a file that is there already")
    given = parser.parse_args()
    require_seed(given.seed)
    sound_file.require_sound_file(given.out, inputs=[given.codes], overwrite=given.overwrite)
    require_published(given.folder, "token2wav")
    codes = _read_codes(given.codes, read_limits(given.folder), given.stream)
    voices = read_voices(given.folder / VOICES)
    voice = pick(voices, min(voices) if given.voice is None else given.voice)
    pick_variant(read_variants(given.folder), given.variant)
    model = open_published(given.folder, quantized=not given.float32)
    began = time.perf_counter()
    first = None
    samples = 0
    with sound_file.writing(given.out) as write:
        for piece in _spoken(model, codes, voice.cond, voice.ref_mel, given):
            first = first or time.perf_counter() - began
            write(piece)
            samples += len(piece)
    took = time.perf_counter() - began
    seconds = samples / SAMPLE_RATE
    print(
        f"{one_line(str(given.out))}: {seconds:.2f} s of {voice.name} in {took:.2f} s "
        f"({took / seconds:.2f} s a second); "
        f"first sound after {first:.2f} s"
    )


def _spoken(
    model: Token2Wav, codes: np.ndarray, cond: np.ndarray, ref_mel: np.ndarray, given: argparse.Namespace
) -> Iterator[np.ndarray]:
    if given.stream:
        one_by_one = (codes[at : at + 1] for at in range(len(codes)))
        return stream(model, one_by_one, cond, ref_mel, seed=given.seed, variant=given.variant, window=Window())
    return iter([model.speak(codes, cond, ref_mel, seed=given.seed, variant=given.variant)])


def _read_codes(path: Path, limits: CodeLimits, streamed: bool) -> np.ndarray:
    """Return a file's codes, [codes] int64; what cannot be spoken is told before the models are hashed."""
    codes = read_array(path)
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        raise UserError(f"{path}: {codes.dtype} {list(codes.shape)}; integers [codes] are needed")
    if len(codes) > _MOST:
        raise UserError(f"{path}: {len(codes)} codes; a sound file takes {_MOST}, a day of speech: cut them")
    if not streamed:
        limits.require_number(len(codes))
    limits.require(codes)
    return codes.astype(np.int64)


if __name__ == "__main__":
    run_command(main, needs_reader=False)
