"""Compare a decoder at four bits with its peers, after a build: ``python -m benchmarks.four_bits [COMPONENT]``.

ONNX Runtime's own quantizers and onnxruntime-genai's builder make graphs of 4 bits from the same float32 weights; these
stand beside ours in one table, ranked by what they lose. A peer that cannot be made has its tool's message instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.building import temporary_folder
from benchmarks.decoder import genai
from benchmarks.decoder.bench import NAMES
from benchmarks.decoder.contenders import FEWEST, Contender
from benchmarks.four_bits.judge import Forward, Judge, golden_kl, token_ids, weights
from benchmarks.four_bits.peers import OURS, Peer, Setting, peers
from benchmarks.measure import Run, median_seconds, opened, speed, time_run
from benchmarks.report import JsonFile, Overwrite, json_file, number, print_table
from omni.inputs import HELD_OUT, read
from omni.params import load
from omni.patterns import first_match, unmatched
from omni.quiet import quiet
from omni.resources import machine, progress
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.embedding import EmbeddingTable
from validate.measured import built_components

__all__ = ["main", "measure"]

_PAST, _PROMPT = 256, 64  # tokens before a step, and of a prompt, that are timed
_MESSAGE = 200  # characters of a tool's message that are kept
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    component: Annotated[str, typer.Argument(help="Decoder: thinker or talker.")] = "thinker",
    ours: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Folder with another graph of ours; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Peers beside ours as built; repeatable, all without.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Largest number of runs; slow peers take fewer.")] = 30,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print size, accuracy and speed of a decoder by our recipes and by others'. Nothing else should run meanwhile."""
    others = dict(_named_graph(text) for text in ours or [])
    json = json_file(json, overwrite=overwrite, inputs=[file.parent for file in others.values()])
    setting = _setting(component)
    found = measure(setting, _chosen(peers(setting, others), only or ["*"]), rounds)
    _print(found)
    if json:
        artifact.write_json(json, found)


def measure(setting: Setting, compared: list[Peer], rounds: int) -> dict[str, Any]:
    """Make each peer, judge it, let it take turns with ours as built, and delete it.

    Args:
        setting: What the peers are made from.
        compared: Peers; the first is the float32 graph, with whose logits all are compared.
        rounds: Largest number of rounds.

    Returns:
        The circumstances, and a row for each peer, by KL divergence from float32; those that could not be made come
        last, with a ``reason``.
    """
    table = setting.measured.companions / setting.bench.decoder.embedding
    ids = token_ids(setting.held_out, EmbeddingTable(table)) if table.exists() else None
    float_graph = setting.graph.files[FLOAT]
    float_weights = weights(float_graph, setting.head).layer_bytes / 4
    with temporary_folder() as folder, progress("peers", len(compared)) as advance:
        judge = Judge(setting.held_out, ids, compared[0].forward(float_graph), folder)
        baseline = opened(partial(compared[1].contender, setting.graph.files[QUANTIZED]))
        rows = []
        for peer in compared:
            rows.append(_row(setting, peer, judge, baseline, float_weights, rounds))
            advance(1)
    rows.sort(key=lambda row: row.get("kl", math.inf))
    return {
        "machine": machine(),
        "component": setting.measured.name,
        "tokens": sum(map(len, setting.held_out)),
        "past": _lengths(setting)[0],
        "prompt": _lengths(setting)[1],
        "rounds": rounds,
        "genai": metadata.version("onnxruntime-genai") if genai.installed() else None,
        "peers": rows,
    }


def _row(
    setting: Setting, peer: Peer, judge: Judge, baseline: Contender, float_weights: float, rounds: int
) -> dict[str, Any]:
    """Return what is found of a peer; of one that another project's tool cannot make or run, the reason."""
    with output.temporary_folder(Path("models").resolve()) as folder:
        try:
            with quiet():
                graph = peer.write(folder)
            found = weights(graph, peer.head)
            bits = {"mb": found.mb, "bits": found.layer_bytes * 8 / float_weights, "head_bits": found.head_bits}
            judged = _judged(setting, judge, peer.forward(graph))
            timed = _timed(setting, baseline, opened(partial(peer.contender, graph)), rounds)
        except Exception as error:  # tools raise whatever they like
            if not peer.foreign:
                raise
            message = " ".join(str(error).split())[-_MESSAGE:]  # its end names the cause
            return {"peer": peer.name, "reason": f"{type(error).__name__}: {message}"}
    return {"peer": peer.name, **bits, **judged, **timed}


def _judged(setting: Setting, judge: Judge, forward: Forward) -> dict[str, Any]:
    return {**asdict(judge(forward)), "kl_golden": golden_kl(setting.measured.golden, forward)}


def _timed(setting: Setting, baseline: Contender, own: Contender, rounds: int) -> dict[str, Any]:
    """Return how many times as fast as ours as built a step and a prompt are, and their median times."""
    past, prompt = _lengths(setting)
    rows = max(setting.held_out, key=len)
    runs: dict[str, Callable[[Contender], Run]] = {
        "step": lambda one: one.step(rows[: past + 1]),
        "prefill": lambda one: one.prefill(rows[:prompt]),
    }
    found = {}
    for what, prepare in runs.items():
        turns = time_run(baseline, own, prepare, rounds, FEWEST)
        found[what] = {"ms": median_seconds([turns]) * 1e3, **speed(*turns)}
    return found


def _lengths(setting: Setting) -> tuple[int, int]:
    """Return the number of tokens before a step and of a prompt: as many as the longest recording has, at most."""
    longest = max(map(len, setting.held_out))
    return min(_PAST, longest - 1), min(_PROMPT, longest)


def _setting(name: str) -> Setting:
    if name not in NAMES:
        raise UserError(f"{name}: not a decoder: give {' or '.join(NAMES)}")
    ((measured, params),) = built_components([name])
    if QUANTIZED not in measured.kinds:
        raise UserError(f"{name}: not quantized, so there is nothing to compare; see quantize in params.yaml")
    recordings = [rows for rows in read(name, HELD_OUT).values() if len(rows) > 1]
    return Setting(measured, params.graph(next(iter(measured.graphs))), recordings, load().sessions.threads)


def _named_graph(text: str) -> tuple[str, Path]:
    """Return name and graph of an option NAME=FOLDER."""
    name, equals, folder = text.partition("=")
    if not name or not equals or not folder:
        raise UserError(f"--ours: {text!r} is not allowed: give NAME=FOLDER")
    graphs = sorted(Path(folder).glob("*.onnx"))
    if len(graphs) != 1:
        raise UserError(f"--ours: {folder}: {len(graphs)} graphs (*.onnx): give a folder with one")
    return f"ours {name}", graphs[0]


def _chosen(compared: list[Peer], patterns: list[str]) -> list[Peer]:
    """Return the float32 graph, ours as built, and those of the others whose names match a pattern.

    Raises:
        UserError: A pattern matches none of the others.
    """
    always, others = compared[:2], compared[2:]
    names = [peer.name for peer in others]
    if missing := unmatched(patterns, names):
        raise UserError(f"--only: {missing[0]!r} is none of {'; '.join(names)}")
    chosen = dict.fromkeys(patterns, True)
    return always + [peer for peer in others if first_match(chosen, peer.name)]


def _print(found: Mapping[str, Any]) -> None:
    """Print the table, and why peers are missing in it."""
    facts = {**found["machine"], **({"onnxruntime-genai": found["genai"]} if found["genai"] else {})}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(
        f"{found['component']}: {found['tokens']} held-out tokens; KL in nats from our float32 graph; a step after "
        f"{found['past']} tokens and a prompt of {found['prompt']}: times as fast as ours as built"
    )
    head = [
        "", "MB", "bits a weight", "head", "KL", "without first tokens", "KL, golden cases", "top-1, strict",
        "perplexity", "a step", "a prompt",
    ]  # fmt: skip
    made = [row for row in found["peers"] if "reason" not in row]
    print_table([head, *map(_cells, made)])
    for row in found["peers"]:
        if "reason" in row:
            print(f"\n{row['peer']}: {row['reason']}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = f"**{row['peer']}**" if row["peer"] == OURS else row["peer"]
    divergences = ["" if row[key] is None else f"{row[key]:.2g}" for key in ("kl", "kl_later", "kl_golden")]
    speeds = [number(row[what]["speedup"], 2) for what in ("step", "prefill")]
    accuracy = [number(row["top1"], 3), number(row["perplexity"], 2)]
    return [name, number(row["mb"], 1), number(row["bits"], 2), str(row["head_bits"]), *divergences, *accuracy, *speeds]


if __name__ == "__main__":
    run_app(app)
