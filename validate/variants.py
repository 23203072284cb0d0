"""Measures the cost of the sampler variants, and their distance from the reference variant and from the solution.

Every variant runs the same golden case from the same noise, interleaved with the reference, so that the ratio of their
times is measured under the same conditions.
"""

from __future__ import annotations

import time

import numpy as np

from omni.reports import VariantCost
from omni.resources import progress
from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.metrics import sqnr_db, stft_distance
from qwen_omni_onnx.token2wav import golden as token2wav
from validate.measured import MeasuredComponent

__all__ = ["measure"]

_ROUNDS = 3


def measure(measured: MeasuredComponent, threads: int) -> list[VariantCost]:
    """Return, for each kind of graphs and each variant, its cost and its distance from the float32 reference.

    Times exclude the vocoder, which takes the same time after every variant.
    """
    cases = (ports for _, ports in golden.read(measured.golden) if "mel_finer" in ports)
    ports = max(cases, key=lambda ports: ports["mel_finer"].size)
    costs: list[VariantCost] = []
    expected: dict[str, np.ndarray] = {}
    models = {
        kind: token2wav.open_graphs(measured.files(kind), measured.companions, threads) for kind in measured.kinds
    }
    with progress("variants", len(models)) as advance:
        for kind, model in models.items():
            seconds: dict[str, list[float]] = {name: [] for name in model.variants}
            mels: dict[str, np.ndarray] = {}
            for _ in range(_ROUNDS):
                for name in model.variants:
                    start = time.perf_counter()
                    mels[name] = token2wav.mel_of(model, ports, name)
                    seconds[name].append(time.perf_counter() - start)
            outputs = {
                name: {"mel": mel, "waveform": token2wav.waveform_of(model, ports, mel)} for name, mel in mels.items()
            }
            expected = expected or outputs[token2wav.REFERENCE]
            for name, variant in model.variants.items():
                ratios = np.array(seconds[name]) / np.array(seconds[token2wav.REFERENCE])
                costs.append(
                    VariantCost(
                        graphs=kind,
                        variant=name,
                        evaluations=variant.evaluations,
                        cost=float(np.median(ratios)),
                        seconds_each=float(np.median(seconds[name])) / token2wav.duration(model, ports),
                        mel_db=sqnr_db(expected["mel"], outputs[name]["mel"]),
                        mel_median_db=_median_db(expected["mel"], outputs[name]["mel"]),
                        finer_db=sqnr_db(ports["mel_finer"], outputs[name]["mel"]),
                        finer_median_db=_median_db(ports["mel_finer"], outputs[name]["mel"]),
                        waveform_db=sqnr_db(expected["waveform"], outputs[name]["waveform"]),
                        stft=stft_distance(expected["waveform"], outputs[name]["waveform"]),
                    )
                )
            advance(1)
    return costs


def _median_db(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the SQNR of the median frame: a frame that flips to another valid one would decide that of all."""
    pairs = zip(expected.reshape(-1, expected.shape[-1]), found.reshape(-1, found.shape[-1]), strict=True)
    return float(np.median([sqnr_db(one, other) for one, other in pairs if one.any()]))
