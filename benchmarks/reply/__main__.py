"""Measure a spoken reply on one core and on more, and beside PyTorch: ``python -m benchmarks.reply``.

Each number of cores has a process of its own. From a part's time on one core and on all, Amdahl's law says what it
would take on 4, 8 and 16: an estimate that knows of no limit of the memory's bandwidth, which decoders meet first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import soundfile
import typer

from benchmarks.long_sound import sound_of
from benchmarks.reply.beside import PARTS, compare, print_comparison
from benchmarks.report import HELD_OUT_SPEECH, PUBLISHED, JsonFile, Models, Overwrite, Speech, json_file, print_table
from omni.resources import machine, measure_module
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE

__all__ = ["amdahl", "main"]

MORE_CORES = (4, 8, 16)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    models: Models = PUBLISHED,
    speech: Speech = HELD_OUT_SPEECH,
    seconds: Annotated[float, typer.Option(help="Length of the question in seconds.", min=0.1, max=60)] = 3.0,
    tokens: Annotated[int, typer.Option(help="Tokens after which the text is cut off.", min=1, max=1024)] = 20,
    codes: Annotated[int, typer.Option(help="Codes after which it is silent, 50 a second.", min=1, max=4096)] = 200,
    seed: Annotated[int, typer.Option(help="Seed for sampling.", min=0, max=2**32 - 1)] = 0,
    pytorch: Annotated[
        Literal["float32", "bfloat16", "both"] | None,
        typer.Option(help="Reply beside transformers as well, with weights of this type; they have to fit the memory."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Folder of the weights that PyTorch takes; models/source without.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of replies beside PyTorch.", min=1, max=100)] = 3,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print time and memory of a spoken reply, by number of cores. Nothing else should run meanwhile."""
    json = json_file(json, overwrite=overwrite, inputs=[models, speech])
    if source is not None and pytorch is None:
        raise UserError("--source: does nothing without --pytorch")
    weights = source or Path("models/source")
    if pytorch and not weights.is_dir():
        raise UserError(f"{weights}: no folder; PyTorch takes the weights from it that were pulled, see --source")
    described = machine()
    cores = int(described["cores"])
    with tempfile.TemporaryDirectory(prefix="reply-") as folder:
        question = Path(folder) / "question.wav"
        soundfile.write(question, sound_of(seconds, speech), INPUT_SAMPLE_RATE)
        measured = [
            _measured(models, question, Path(folder) / "found.json", (count, tokens, codes, seed))
            for count in sorted({1, cores})
        ]
        found: dict[str, Any] = {"machine": described, "question_seconds": seconds, "measured": measured}
        _print(found)
        if pytorch:
            types: list[str] = ["float32", "bfloat16"] if pytorch == "both" else [pytorch]
            beside = compare(models, weights, question, types, tokens, codes, rounds)
            print_comparison(beside)
            found["beside_pytorch"] = beside
    if json:
        artifact.write_json(json, found)


def amdahl(one: float, many: float, cores: int, more: int) -> float:
    """Return the seconds that something takes on ``more`` cores, by Amdahl's law.

    Args:
        one: Seconds on one core.
        many: Seconds on ``cores`` of them; no more than on one counts.
        cores: At least two.
        more: Number of cores.
    """
    parallel = min(one, (one - min(many, one)) / (1 - 1 / cores))  # what gains more was slowed down by something else
    return one - parallel * (1 - 1 / more)


def _measured(models: Path, question: Path, place: Path, numbers: Iterable[int]) -> dict[str, Any]:
    """Reply in a process of its own; ``numbers`` are the last arguments of :func:`benchmarks.reply.worker.measure`."""
    peak = measure_module("benchmarks.reply.worker", str(models), str(question), str(place), *map(str, numbers))
    found = artifact.read_json(place)
    if not found["sound_seconds"]:
        raise UserError(f"{models}: the reply holds no speech; give another --seed")
    return {**found, "peak_bytes": peak}


def _print(found: Mapping[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    measured = found["measured"]
    last = measured[-1]
    print(
        f"a question of {found['question_seconds']:g} s; {last['tokens']} tokens, {last['codes']} codes, "
        f"{last['sound_seconds']:.2f} s of speech"
    )
    columns = [_times(run) for run in measured]
    heads = [f"{run['cores']} core{'s' * (run['cores'] > 1)}" for run in measured]
    if len(measured) > 1:
        for more in MORE_CORES:
            heads.append(f"{more}, estimated")
            columns.append(
                {name: amdahl(value, columns[1][name], last["cores"], more) for name, value in columns[0].items()}
            )
    for column in columns:
        column["in turns"] = sum(column[part] for part in PARTS)
    rows = [[name, *(f"{column[name]:.2f}" for column in columns)] for name in columns[0]]
    beside = [f"{run['side_by_side'] / run['sound_seconds']:.2f}" for run in measured]
    rows.append(["side by side", *beside, *[""] * (len(columns) - len(beside))])
    peaks = [f"{run['peak_bytes'] / 1e9:.2f}" for run in measured]
    rows.append(["peak memory, GB", *peaks, *[""] * (len(columns) - len(peaks))])
    print_table([["seconds", *heads], *rows])
    print(
        "\nParts are seconds for a second of speech; their sum is the real-time factor of a reply in turns."
        "\nSide by side, codes are found while sound is computed. Loading is not part of either."
    )


def _times(run: Mapping[str, Any]) -> dict[str, float]:
    each = {part: run["parts"].get(part, 0.0) / run["sound_seconds"] for part in PARTS}
    return {"loading": run["loading"], "to the first sound": sum(run["first"].values()), **each}


if __name__ == "__main__":
    run_app(app)
