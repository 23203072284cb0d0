"""Compare the audio encoder with its peers: ``python -m benchmarks.encoder``.

By default it builds the encoder at full depth, from synthetic weights, in a folder that is gone afterwards. Accuracy is
judged on the held-out clips, against PyTorch in float32. Speed is judged beside two baselines that run in the same
rounds as the variant, one right after the other: PyTorch in bfloat16, which is what an INT8 graph has to beat, and our
float32 graph. Only these two and one variant are in memory at any time.

A baseline or variant that takes far longer than our float32 graph, as bfloat16 does where it is emulated, runs in the
first few rounds only.
"""

from __future__ import annotations

import dataclasses
import gc
from functools import cached_property, partial, reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import frameworks, report, variants
from benchmarks.building import built, temporary_folder
from benchmarks.measure import Feeds, Variant, by_operator, speed, time_in_turn
from benchmarks.report import JsonFile, Overwrite, decibels, number
from benchmarks.variants import Builder, Setting
from omni.inputs import HELD_OUT, feed, read
from omni.params import load
from omni.quiet import quiet
from omni.resources import progress
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import NEAR_TIE, QUANTIZED
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import compare
from validate.measured import built_components

__all__ = ["main"]

_NAME = "encoder"
_STAGES = [
    *((stage, component) for component in ("frontend", _NAME) for stage in ("pull", "export", "inputs")),
    *((stage, _NAME) for stage in ("reference", "calibrate", "quantize.compensate", "quantize")),
]
_FRAMES_A_SECOND = 100
_LONGEST = 360_000  # frames, an hour; some variants take in all of them at once
_FAR_LONGER, _FEW = 4, 2  # a variant that takes 4 times as long as our float32 graph runs 2 rounds
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What every variant takes turns with.

    Attributes:
        bfloat16: PyTorch in bfloat16.
        float32: Our float32 graph.
        fed: Inputs by name.
        rounds: Largest number of rounds.
    """

    bfloat16: Variant
    float32: Variant
    fed: Feeds
    rounds: int

    @cached_property
    def float32_seconds(self) -> float:
        """Time of our float32 graph, warmed up."""
        return [time_in_turn([self.float32], self.fed)[0] for _ in range(2)][-1]

    @cached_property
    def bfloat16_rounds(self) -> int:
        """Number of rounds that PyTorch in bfloat16 takes part in."""
        return self.rounds_of(self.bfloat16)

    def rounds_of(self, variant: Variant) -> int:
        """Warm a variant up; return how many rounds it takes part in."""
        (taken,) = time_in_turn([variant], self.fed)
        return min(_FEW, self.rounds) if taken > _FAR_LONGER * self.float32_seconds else self.rounds


@app.command()
def main(
    layers: Annotated[
        str, typer.Option(help="Number of layers; full for all, or built for models/ as it is.")
    ] = "full",
    frames: Annotated[
        int, typer.Option(min=3, max=_LONGEST, help="Length of the timed sound in mel frames, 100 a second.")
    ] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Largest number of runs of each variant.")] = 10,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print size, accuracy and speed of the encoder in every variant. Nothing else should run meanwhile."""
    json = report.json_file(json, overwrite=overwrite)
    with built(layers, _STAGES, _with_static_ranges), temporary_folder() as folder:
        ((measured, params),) = built_components([_NAME])
        setting = Setting(measured, params.graph(next(iter(measured.graphs))), load().sessions.threads, folder)
        recordings = list(read(_NAME, HELD_OUT).items())
        clips = {clip: feed(measured.contract, [signal], [signal.shape[1]]) for clip, signal in recordings}
        fed = feed(measured.contract, [signal for _, signal in recordings], [frames])
        config: Any = read_config(measured.folders["onnx"])
        found = {
            **report.circumstances(_NAME, setting.cores, rounds),
            "layers": reduce(getitem, measured.component.depth, config),
            "frames": frames,
            "variants": _compare(setting, clips, fed, rounds),
            "profile": by_operator(setting.measured_graph.files[QUANTIZED], setting.threads, fed, folder),
        }
    _print(found)
    if json:
        artifact.write_json(json, found)


def _with_static_ranges(params: dict[str, Any]) -> None:
    """Let calibration measure what int8-static needs."""
    params[_NAME]["calibrate"]["audio_encoder"]["headroom"] = 1.3


def _compare(setting: Setting, clips: dict[str, Feeds], fed: Feeds, rounds: int) -> list[dict[str, Any]]:
    """Return a row of each variant; PyTorch float32, which all are compared with, comes first."""
    exact, bfloat16 = frameworks.pytorch(setting)
    with quiet():
        comparison = Comparison(bfloat16(), variants.float32(setting), fed, rounds)
    builders: list[Builder] = [
        exact,
        lambda: comparison.bfloat16,
        lambda: comparison.float32,
        *variants.ours(
            setting, ("int8-tensor",) if setting.calibrated.headroom is None else ("int8-tensor", "int8-static")
        ),
        partial(variants.dynamic, setting),
        *(frameworks.openvino(setting) if frameworks.openvino_installed() else []),
    ]
    expected: dict[str, np.ndarray] = {}
    rows = []
    with progress("variants", len(builders)) as advance:
        for builder in builders:
            with quiet():
                variant = builder()
            outputs = {clip: np.array(variant.run(features)) for clip, features in clips.items()}
            expected = expected or outputs
            row = {"variant": variant.name, "mb": variant.nbytes / 1e6, **_accuracy(variant.name, expected, outputs)}
            rows.append(row | _speeds(variant, comparison))
            del variant  # gigabytes, which the next one needs
            gc.collect()
            _empty(setting.folder)
            advance(1)
    whole = next(row["mb"] for row in rows if row["variant"] == comparison.float32.name)
    return [{**row, "share": row["mb"] / whole} for row in rows]


def _accuracy(name: str, expected: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the SQNR over all clips, that of the worst clip, and that of each."""
    found = {}
    for clip, wanted in expected.items():
        try:
            found[clip] = compare(wanted, outputs[clip], NEAR_TIE).sqnr_db
        except ValueError as error:
            raise UserError(f"{name}: clip {clip}: {error}") from None
    strung = [np.concatenate(list(arrays.values()), axis=1) for arrays in (expected, outputs)]
    worst = min(found, key=lambda clip: found[clip])
    overall = compare(strung[0], strung[1], NEAR_TIE).sqnr_db
    return {"sqnr_db": overall, "worst_clip": worst, "worst_clip_db": found[worst], "clips": found}


def _speeds(variant: Variant, comparison: Comparison) -> dict[str, Any]:
    """Let a variant take turns with both baselines, in alternating order."""
    baselines = {"bfloat16": comparison.bfloat16, "float32": comparison.float32}
    rounds = {comparison.bfloat16.name: comparison.bfloat16_rounds, comparison.float32.name: comparison.rounds}
    rounds[variant.name] = comparison.rounds_of(variant)
    times: dict[str, list[float]] = {}
    for index in range(rounds[variant.name]):
        group = {one.name: one for one in (*baselines.values(), variant) if index < rounds[one.name]}
        taken = time_in_turn(list(group.values()), comparison.fed, backwards=index % 2 == 1)
        for name, seconds in zip(group, taken, strict=True):
            times.setdefault(name, []).append(seconds)
    own = times[variant.name]
    return {
        "ms": float(np.median(own) * 1e3),
        "speed": {
            key: speed(times[baseline.name][: len(own)], own[: len(times[baseline.name])])
            for key, baseline in baselines.items()
        },
    }


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _print(found: dict[str, Any]) -> None:
    """Print the machine, one Markdown table, and where the time goes."""
    seconds = found["frames"] / _FRAMES_A_SECOND
    report.print_circumstances(
        found,
        f"{found['layers']} layers, {seconds:g} s of speech; speed: how many times as fast as PyTorch bfloat16 and our "
        f"float32 graph, median of at most {found['rounds']} rounds; RTF: time over the length of the speech",
    )
    head = ["variant", "MB", "share", "SQNR dB", "worst clip", "x bf16", "95 %", "x float32", "95 %", "ms", "RTF"]
    table = [head]
    for row in found["variants"]:
        cells = [row["variant"], number(row["mb"], 1), f"{row['share']:.1%}"]
        cells += [decibels(row["sqnr_db"]), decibels(row["worst_clip_db"])]
        cells += report.speed_cells(row["speed"])
        table.append([*cells, number(row["ms"], 0), number(row["ms"] / 1e3 / seconds, 2)])
    report.print_table(table)
    print()
    report.print_shares("ours as built", found["profile"])


if __name__ == "__main__":
    run_app(app)
