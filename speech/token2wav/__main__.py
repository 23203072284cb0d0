"""Codec codes to a sound file: ``python -m speech.token2wav FOLDER CODES.npy OUT.wav``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omni.errors import Problem, run_command
from omni.voices import VOICES
from speech import sound_file
from speech.sampler import REFERENCE, pick_variant
from speech.token2wav.runtime import SAMPLE_RATE, Token2Wav, open_published, read_variants
from speech.token2wav.stream import Window, stream
from speech.voices import pick, read_voices


def main() -> None:
    """Speak one file of codes."""
    parser = argparse.ArgumentParser(prog="python -m speech.token2wav", description="Codec codes to 24 kHz sound.")
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
    if given.seed < 0:
        raise Problem(f"--seed: {given.seed}; give 0 or more")
    sound_file.require_sound_file(given.out, inputs=[given.codes], overwrite=given.overwrite)
    codes = _read_codes(given.codes)
    voices = read_voices(given.folder / VOICES)
    voice = pick(voices, given.voice or sorted(voices)[0])
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
        f"{given.out}: {seconds:.2f} s of {voice.name} in {took:.2f} s ({took / seconds:.2f} s a second); "
        f"first sound after {first:.2f} s"
    )


def _spoken(
    model: Token2Wav, codes: np.ndarray, cond: np.ndarray, ref_mel: np.ndarray, given: argparse.Namespace
) -> Iterator[np.ndarray]:
    if given.stream:
        one_by_one = (codes[at : at + 1] for at in range(len(codes)))
        return stream(model, one_by_one, cond, ref_mel, seed=given.seed, variant=given.variant, window=Window())
    return iter([model.speak(codes, cond, ref_mel, seed=given.seed, variant=given.variant)])


def _read_codes(path: Path) -> np.ndarray:
    try:
        codes = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise Problem(f"{path}: no such file") from None
    except Exception as error:  # NumPy raises many kinds for a file that is not what it says
        raise Problem(f"{path}: cannot be read as an array ({error})") from None
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        raise Problem(f"{path}: {codes.dtype} {list(codes.shape)}; integers [codes] are needed")
    return codes.astype(np.int64)


if __name__ == "__main__":
    run_command(main)
