"""Compare token2wav with its peers: ``python -m benchmarks.token2wav``.

By default it builds token2wav at full depth, from synthetic weights, in a folder that is gone afterwards. Accuracy is
judged against PyTorch. Speed is judged beside two baselines, PyTorch and our float32 graphs, with each of which every
way takes turns: only those two are in memory at any time.

An utterance takes 36 evaluations of the ODE with guidance, all of one cost, and the vocoder: an evaluation is timed at
each length, the vocoder on as many frames as the run-time turns into sound at once.
"""

from __future__ import annotations

from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any

import typer
from validate.subject import FLOAT, QUANTIZED, subjects

from benchmarks.building import built, run_module, temporary_folder
from benchmarks.options import JsonFile, Overwrite, json_file
from benchmarks.report import circumstances
from benchmarks.token2wav.contest import CONTEXT, SPOKEN, Comparison, compare
from benchmarks.token2wav.goals import goals
from benchmarks.token2wav.rates import rates
from benchmarks.token2wav.room import reason_not_to_run, require_room_for_pytorch
from benchmarks.token2wav.speaking import linearity, memory, streaming
from benchmarks.token2wav.tables import print_all
from benchmarks.token2wav.utterance import codes_of, mel_frames, utterance
from benchmarks.token2wav.ways import Bench, builders
from components.token2wav import dit_config
from omni.command_line import run_app
from omni.params import load
from omni.resources import machine, progress
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import REFERENCE, variants
from qwen_omni_onnx.token2wav.runtime import SAMPLE_RATE

__all__ = ["main"]

_NAME = "token2wav"
_STAGES = [(stage, _NAME) for stage in ("pull", "export", "inputs", "reference", "calibrate", "quantize")]
_CASES = [[25]]  # codes of the only golden case: nothing here reads it, and PyTorch takes long at full depth
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    layers: Annotated[str, typer.Option(help="full, a number, or built: models/ as it is")] = "full",
    seconds: Annotated[str, typer.Option(help="lengths of speech to compare at, joined by commas")] = "5,30",
    rounds: Annotated[int, typer.Option(min=1, help="runs of each way; of those that take long, fewer")] = 10,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print accuracy, speed and memory of token2wav in every way to run it. Nothing else should run meanwhile."""
    json = json_file(json, overwrite=overwrite)
    lengths = _lengths(seconds)
    with built(layers, _STAGES, _change), temporary_folder() as folder:
        ((subject, _),) = subjects([_NAME])
        threads = load().sessions.threads
        found = _measure(Bench(subject, threads, threads or int(machine()["cores"]), folder), lengths, rounds)
    print_all(found)
    if json:
        artifact.write_json(json, found)


def _lengths(text: str) -> list[float]:
    try:
        lengths = [float(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or not all(0 < length < float("inf") for length in lengths):
        raise UserError(f"--seconds: {text!r} is not allowed: give lengths in seconds, joined by commas: 5,30")
    return sorted(set(lengths))


def _change(params: dict[str, Any]) -> None:
    """Let token2wav be built alone, from made-up codes, and without golden cases that nothing here reads."""
    params[_NAME]["inputs"]["source"] = "synthetic"
    params[_NAME]["cases"] = _CASES


def _measure(bench: Bench, lengths: list[float], rounds: int) -> dict[str, Any]:
    config: Any = read_config(bench.subject.companions)
    contest = _contest(bench, lengths, rounds, dit_config(config)["num_attention_heads"])
    ways = compare(contest, builders(bench))
    found = {
        **circumstances(_NAME, bench.cores, rounds),
        "layers": reduce(getitem, bench.subject.component.depth, config),
        "evaluations": contest.evaluations,
        "vocoded_frames": SPOKEN,
        "context_frames": CONTEXT,
        "ways": ways,
        "goals": goals(ways),
    }
    kinds = (FLOAT, QUANTIZED)
    with progress("ours", 2 * len(kinds) + 2) as advance:
        for name, measure in (("linearity", partial(linearity, mel=contest.mel)), ("memory", memory)):
            found[name] = {}
            for kind in kinds:
                found[name][kind] = measure(bench, kind)
                advance(1)
        found["streaming"] = streaming(bench)
        advance(1)
        frames = next(iter(contest.utterances.values()))["noise"].shape[1]
        found["rates"] = rates(bench, frames, SPOKEN)
        advance(1)
    return found


def _contest(bench: Bench, lengths: list[float], rounds: int, heads: int) -> Comparison:
    """Export transformers' modules as they are, and say what has to be done by all ways that can."""
    settings = bench.settings
    codes = {seconds: codes_of(bench, seconds) for seconds in lengths}
    frames = {seconds: settings["repeats"] * count for seconds, count in codes.items()}
    require_room_for_pytorch(heads, max(frames.values()))
    with progress("exporting as it is", 1) as advance:
        run_module("benchmarks.token2wav.naive", str(bench.folder), folder=Path.cwd())
        advance(1)
    skipped: dict[str, dict[float, str]] = {}
    for way in builders(bench):
        for seconds in lengths:
            reason = reason_not_to_run(way, heads, frames[seconds])
            if reason:
                skipped.setdefault(way, {})[seconds] = reason
    return Comparison(
        utterances={seconds: utterance(bench, count) for seconds, count in codes.items()},
        mel=mel_frames(bench, SPOKEN + 2 * CONTEXT),
        frame=settings["samples_per_frame"] / SAMPLE_RATE,
        evaluations=variants(settings["variants"])[REFERENCE].evaluations,
        rounds=rounds,
        skipped=skipped,
    )


if __name__ == "__main__":
    run_app(app)
