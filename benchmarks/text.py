"""Judge a decoder at 8 and at 4 bits by text beside float32: ``python -m benchmarks.text``, after ``make trained``.

The same graphs are judged twice: by lm-eval, through the adapter of ``validate text``, and by this project's own
count over held-out texts. Both must be surprised alike, or one of them is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from benchmarks.decoder.bench import described
from benchmarks.four_bits.judge import Forward, Judge, forward_of, surprise_of, token_ids
from benchmarks.report import JsonFile, Overwrite, json_file, number, print_table
from benchmarks.variants import disk_bytes, write_ours
from omni.inputs import HELD_OUT, read
from omni.params import load
from omni.quiet import quiet
from omni.resources import machine, progress
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.embedding import EmbeddingTable
from qwen_omni_onnx.thinker.golden import open_graphs
from validate.measured import built_components
from validate.text import open_tasks

if TYPE_CHECKING:
    from qwen_omni_onnx.thinker import Thinker
    from validate.text.harness import Tasks

__all__ = ["main"]

_TASKS = Path("data/tasks")
_PERPLEXITY, _BITS = "held_out_text", "bits_per_byte,none"
_CHOICES = "next_sentence"
_SAME = 1e-5  # relative: both add up the same logits
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print what the built Thinker loses at 8 and at 4 bits, by lm-eval and by perplexity."""
    json = json_file(json, overwrite=overwrite, inputs=[Path("data")])
    tasks = open_tasks([_PERPLEXITY, _CHOICES], _TASKS)
    found = {"machine": machine(), **measure(tasks)}
    _print(found)
    if json:
        artifact.write_json(json, found)
    _require_agreement(found)


def measure(tasks: Tasks) -> dict[str, Any]:
    """Return a row for float32, ``int8-block`` throughout and the built graph.

    Raises:
        UserError: The Thinker is not quantized, or its held-out recordings are not the texts of the tasks.
    """
    ((measured, params),) = built_components(["thinker"])
    (graph,) = measured.graphs.values()
    block = params.graph(graph.stem).quantize
    if block is None:
        raise UserError("thinker: not quantized, so there is nothing to compare; see quantize in params.yaml")
    recordings = list(read("thinker", HELD_OUT).values())
    ids = token_ids(recordings, EmbeddingTable(measured.companions / described("thinker")[1].embedding))
    if ids is None:
        raise UserError("thinker: its held-out recordings are not of text alone; run this in build/trained")
    threads = load().sessions.threads
    eight = block.model_copy(update={"scheme": "int8-block", "nodes": {}, "compensation": {}})
    rows = []
    with output.temporary_folder() as folder, progress("graphs", 3) as advance:
        with quiet():
            wider = write_ours(measured, graph.stem, eight, folder)
        files = {FLOAT: graph.files[FLOAT], "int8-block": wider, f"{block.scheme}, as built": graph.files[QUANTIZED]}
        judge = None
        for name, file in files.items():
            thinker = open_graphs({graph.stem: file}, measured.companions, threads)
            forward = forward_of(thinker.decoder)
            judge = judge or Judge(recordings, ids, forward, folder)
            judged = {**asdict(judge(forward)), "nats": _nats(thinker, forward, recordings, ids)}
            results = tasks.judge(thinker, measured.companions)
            rows.append({"graph": name, "mb": disk_bytes(file) / 1e6, **judged, "tasks": results})
            del thinker, forward  # before the next one is opened: of a large decoder, memory holds one
            advance(1)
    return {"bytes": sum(file.stat().st_size for file in Path("data/text/held_out").glob("en-*.txt")), "rows": rows}


def _nats(thinker: Thinker, forward: Forward, recordings: Sequence[np.ndarray], ids: Sequence[np.ndarray]) -> float:
    """Return the surprise a token as lm-eval counts it: a token that ends texts stands before each of them."""
    before = thinker.prompt(np.array([min(thinker.special_tokens.ends)])).embeds
    total = sum(
        surprise_of(forward(np.concatenate([before, rows]))[:-1], tokens)
        for rows, tokens in zip(recordings, ids, strict=True)
    )
    return total / sum(map(len, ids))


def by_harness(found: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """Return a graph's surprise in nats a token by lm-eval, which tells bits a byte."""
    return float(row["tasks"][_PERPLEXITY][_BITS]) * math.log(2) * found["bytes"] / row["tokens"]


def _require_agreement(found: Mapping[str, Any]) -> None:
    for row in found["rows"]:
        told, own = by_harness(found, row), row["nats"]
        if not math.isclose(told, own, rel_tol=_SAME):
            raise UserError(
                f"{row['graph']}: {own:.6g} nats a token by our own count and {told:.6g} by lm-eval's: one is wrong"
            )


def _print(found: Mapping[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    exact = by_harness(found, found["rows"][0])
    head = [
        "", "MB", "KL", "top-1, strict", "perplexity", "lm-eval: word perplexity", "nats a token lost",
        "next sentence",
    ]  # fmt: skip
    table = [head]
    for row in found["rows"]:
        text, choices = row["tasks"][_PERPLEXITY], row["tasks"][_CHOICES]
        close = [f"{row['kl']:.2g}", number(row["top1"], 3), number(row["perplexity"], 2)]
        lost = f"{by_harness(found, row) - exact:.4f}"
        told = [number(text["word_perplexity,none"], 2), lost, number(choices["acc_norm,none"], 3)]
        table.append([row["graph"], number(row["mb"], 1), *close, *told])
    print_table(table)


if __name__ == "__main__":
    run_app(app)
