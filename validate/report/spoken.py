"""Audio of a golden case of token2wav: PyTorch's recorded waveform, and those of the graphs, which run for the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import soundfile

from omni.resources import progress
from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import sqnr_db, stft_distance
from qwen_omni_onnx.token2wav import golden as token2wav
from validate.measured import MeasuredComponent

__all__ = ["SPEAKS", "Spoken", "Take", "speak", "wav_uri"]

SPEAKS = "token2wav"
_LONGEST = 4.0  # seconds of each take that the page embeds


@dataclass(frozen=True)
class Take:
    """One waveform, [samples] float32, with its distances from PyTorch's over the whole row; None for PyTorch's own."""

    name: str
    waveform: np.ndarray
    sqnr_db: float | None
    stft: float | None


@dataclass(frozen=True)
class Spoken:
    """A row of a golden case in several takes; ``codes`` is the number of its codes, ``rate`` the sample rate in Hz."""

    case: str
    codes: int
    rate: int
    takes: tuple[Take, ...]


def speak(measured: MeasuredComponent, threads: int) -> Spoken:
    """Run the longest row of all golden cases with the graphs of each kind, in the reference variant.

    Raises:
        UserError: A graph or the golden cases cannot be used; a waveform is NaN, or not as long as PyTorch's.
    """
    try:
        case, ports = max(golden.read(measured.golden), key=lambda entry: (entry[1]["code_lens"].max(), entry[0]))
        row = int(ports["code_lens"].argmax())
        codes, expected, rate = int(ports["code_lens"][row]), ports["waveform"][row], token2wav.OUTPUT_SAMPLE_RATE
    except KeyError as error:
        raise UserError(f"{measured.golden}: a case has no {error}; record the golden cases again") from None
    takes = [Take("PyTorch", expected, None, None)]
    with progress("sound", len(measured.kinds)) as advance:
        for kind in measured.kinds:
            model = token2wav.open_graphs(measured.files(kind), measured.companions, threads)
            waveform = token2wav.waveform_of(model, ports, token2wav.mel_of(model, ports))[row]
            if waveform.shape != expected.shape or not np.isfinite(waveform).all():
                raise UserError(
                    f"{measured.name} {kind}: case {case}: not the waveform that PyTorch's is compared with"
                )
            takes.append(
                Take(_name(measured, kind), waveform, sqnr_db(expected, waveform), stft_distance(expected, waveform))
            )
            advance(1)
    samples = codes * model.repeats * model.hop  # the rest of the row is padding
    played = min(samples, int(_LONGEST * rate))
    excerpts = tuple(Take(take.name, take.waveform[:played], take.sqnr_db, take.stft) for take in takes)
    return Spoken(f"{case}, row {row + 1}", codes, rate, excerpts)


def _name(measured: MeasuredComponent, kind: str) -> str:
    """Return the display name of a kind of graphs: float32, or INT8 or INT4 by the suffix of the quantized files."""
    if kind == FLOAT:
        return "float32"
    files = [graph.files[QUANTIZED] for graph in measured.graphs.values() if QUANTIZED in graph.files]
    return " and ".join(sorted({file.stem.rpartition("_")[2].upper() for file in files}))


def wav_uri(take: Take, rate: int) -> str:
    """Return a take as a 16-bit WAV in a data URI; samples beyond -1 and 1 are clipped."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(take.waveform, -1, 1), rate, format="WAV", subtype="PCM_16")
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
