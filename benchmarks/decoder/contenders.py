"""Run a decoder in transformers' own module with its cache, in this project's graphs, and compare these in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.decoder.bench import FLOAT32, TOKENS, Bench
from benchmarks.frameworks import PYTORCH_SPINS, original
from benchmarks.measure import Run, Timings, median_seconds, speed, time_run
from benchmarks.variants import disk_bytes
from qwen_omni_onnx.common.agreement import NEAR_TIE
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import compare as distance
from qwen_omni_onnx.decoder import Decoder

__all__ = ["BASELINES", "BFLOAT16", "FEWEST", "PYTORCH", "Contender", "builders", "compare", "of_graph", "ours"]

PYTORCH, BFLOAT16 = "PyTorch float32", "PyTorch bfloat16"
BASELINES = (PYTORCH, FLOAT32)
FEWEST = 3  # rounds, however long they take


@dataclass(frozen=True)
class Contender(measure.Contender):
    """An implementation of a decoder.

    Attributes:
        name: Name in the tables.
        nbytes: Size of its weights in bytes, on disk or in PyTorch.
        spins: See :class:`benchmarks.measure.Variant`.
        teacher_forced: Takes rows [tokens, width]; returns the logits that follow each row, [tokens, vocabulary].
        prefill: Takes a prompt [tokens, width]; returns a function that reads it, with nothing before it, and returns
            the logits after its last token.
        step: Takes a past and one row more, [past + 1, width]; returns a function that reads that row after the past,
            as often as it is called.
    """

    teacher_forced: Callable[[np.ndarray], np.ndarray]
    prefill: Callable[[np.ndarray], Run]
    step: Callable[[np.ndarray], Run]


def builders(bench: Bench) -> dict[str, Callable[[], Contender]]:
    """Return a function that makes each contender, by name; PyTorch, which all are compared with, comes first."""
    return {
        PYTORCH: partial(_pytorch, bench, PYTORCH, "float32"),
        BFLOAT16: partial(_pytorch, bench, BFLOAT16, "bfloat16"),
        **{name: partial(ours, bench, name) for name in bench.schemes},
    }


def ours(bench: Bench, name: str) -> Contender:
    """Return one of our graphs in the run-time that is published."""
    return of_graph(name, bench.graph(name), bench.size.positions, bench.threads)


def of_graph(name: str, graph: Path, positions: int, threads: int) -> Contender:
    """Return a graph with the interface of ours in the run-time that is published.

    Args:
        name: Name in the tables.
        graph: File of the graph.
        positions: Positions that its tables have.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
    """
    decoder = Decoder(graph, positions, threads, stop_spinning=True)

    def teacher_forced(rows: np.ndarray) -> np.ndarray:
        conversation = decoder.begin(reserve=len(rows))
        return np.concatenate([conversation.step(row[None]).logits for row in rows])

    def step(rows: np.ndarray) -> Run:
        past = len(rows) - 1
        conversation = decoder.begin(reserve=len(rows))
        conversation.prefill(rows[None, :past])

        def run() -> np.ndarray:
            conversation.rewind(past)
            return conversation.step(rows[past:]).logits

        return run

    def prefill(rows: np.ndarray) -> Run:
        return lambda: decoder.begin(reserve=len(rows)).prefill(rows[None]).logits

    return Contender(name, disk_bytes(graph), teacher_forced, prefill, step)


def _pytorch(bench: Bench, name: str, precision: str) -> Contender:
    """Return transformers' module as ``generate`` runs it: keys and values are in a cache that grows by copying.

    It differs in one thing: of a prompt, the head reads the last token alone, as in the other contenders. Transformers'
    own reads all of them.
    """
    import torch
    from transformers import DynamicCache

    module = original(bench.name, bench.cores, precision)
    head = getattr(module, bench.decoder.head)
    projection = getattr(module, bench.decoder.projection) if bench.decoder.projection else torch.nn.Identity()

    def forward(rows: np.ndarray, cache: Any, logits_to_keep: slice = slice(-1, None)) -> np.ndarray:
        with torch.inference_mode():
            fed = projection(torch.from_numpy(rows)[None].to(getattr(torch, precision)))
            hidden = module.model(inputs_embeds=fed, past_key_values=cache, use_cache=True).last_hidden_state
            return head(hidden[:, logits_to_keep])[0].float().numpy()

    def step(rows: np.ndarray) -> Run:
        cache = DynamicCache()
        forward(rows[:-1], cache)

        def run() -> np.ndarray:
            logits = forward(rows[-1:], cache)
            cache.crop(-1)
            return logits

        return run

    return Contender(
        name,
        sum(weight.nbytes for weight in module.parameters()),
        lambda rows: forward(rows, DynamicCache(), slice(None)),
        lambda rows: lambda: forward(rows, DynamicCache()),
        step,
        spins=PYTORCH_SPINS,
    )


def compare(bench: Bench, made: Mapping[str, Callable[[], Contender]], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender: how close its logits come to PyTorch's, and how fast it is.

    Args:
        bench: What the contenders are made from.
        made: Functions that make the contenders, by name; both baselines are among them.
        rounds: Largest number of rounds.
    """
    prompt, with_next = bench.rows[: bench.past], bench.rows[: bench.past + 1]
    expected: list[np.ndarray] = []

    def judge(contender: Contender) -> dict[str, Any]:
        logits = contender.teacher_forced(bench.rows[:TOKENS])
        if not expected:  # the first contender is PyTorch
            expected.append(logits)
        try:
            agreement = distance(expected[0], logits, NEAR_TIE)
        except ValueError as error:
            raise UserError(f"{contender.name}: logits: {error}") from None
        return {"mb": contender.nbytes / 1e6, "sqnr_db": agreement.sqnr_db, "top1": agreement.top1}

    def time(baseline: Contender, own: Contender) -> Timings:
        return {
            "step": time_run(baseline, own, lambda one: one.step(with_next), rounds, FEWEST),
            "prefill": time_run(baseline, own, lambda one: one.prefill(prompt), rounds, FEWEST),
        }

    rows, timings = measure.compare(made, BASELINES, judge, time)
    return [{**row, **_speeds(timings[name])} for name, row in rows.items()]


def _speeds(timings: Mapping[str, Timings]) -> dict[str, Any]:
    """Return the median time of a step and of a prompt over all turns, and the speed beside each baseline."""
    return {
        what: {
            "ms": median_seconds(turns[what] for turns in timings.values()) * 1e3,
            "speed": {against: speed(*turns[what]) for against, turns in timings.items()},
        }
        for what in ("step", "prefill")
    }
