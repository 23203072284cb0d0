"""Ways to run a decoder: transformers' own module with its cache, this project's graphs, and onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.decoder.bench import FLOAT32, Bench
from benchmarks.frameworks import PYTORCH_SPINS, original
from benchmarks.variants import disk_bytes
from qwen_omni_onnx.decoder import Decoder

__all__ = ["BASELINES", "BFLOAT16", "PYTORCH", "Contender", "Run", "builders", "ours"]

PYTORCH, BFLOAT16 = "PyTorch float32", "PyTorch bfloat16"
BASELINES = (PYTORCH, FLOAT32)

Run = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """One way to run a decoder.

    Attributes:
        name: as the table shows it.
        nbytes: of its weights, on disk or in PyTorch.
        teacher_forced: takes rows [tokens, width]; returns the logits that follow each, [tokens, vocabulary].
        prefill: takes a prompt [tokens, width]; returns what takes it in, with nothing before it, and gives the logits
            after its last token.
        step: takes a past and one row more, [past + 1, width]; returns what takes in that row, after the past, as often
            as it is called.
        spins: see ``benchmarks.measure.Variant``.
    """

    name: str
    nbytes: int
    teacher_forced: Callable[[np.ndarray], np.ndarray]
    prefill: Callable[[np.ndarray], Run]
    step: Callable[[np.ndarray], Run]
    spins: float = 0.0


def builders(bench: Bench) -> dict[str, Callable[[], Contender]]:
    """Return what makes each way, by name: PyTorch, which judges the others, comes first."""
    return {
        PYTORCH: partial(_pytorch, bench, PYTORCH, "float32"),
        BFLOAT16: partial(_pytorch, bench, BFLOAT16, "bfloat16"),
        **{name: partial(ours, bench, name) for name in bench.schemes},
    }


def ours(bench: Bench, name: str) -> Contender:
    """Return the way that one of our graphs runs, with the run-time that is published."""
    graph = bench.graph(name)
    decoder = Decoder(graph, bench.size.positions, bench.threads, stop_spinning=True)

    def teacher_forced(rows: np.ndarray) -> np.ndarray:
        conversation = decoder.begin(room=len(rows))
        return np.concatenate([conversation.step(row[None]).logits for row in rows])

    def step(rows: np.ndarray) -> Run:
        past = len(rows) - 1
        conversation = decoder.begin(room=len(rows))
        conversation.prefill(rows[None, :past])

        def run() -> np.ndarray:
            conversation.rewind(past)
            return conversation.step(rows[past:]).logits

        return run

    def prefill(rows: np.ndarray) -> Run:
        return lambda: decoder.begin(room=len(rows)).prefill(rows[None]).logits

    return Contender(name, disk_bytes(graph), teacher_forced, prefill, step)


def _pytorch(bench: Bench, name: str, precision: str) -> Contender:
    """As ``generate`` runs it: keys and values in a cache that grows by copying.

    But for one thing: of a prompt, the head reads the last token alone, as in the other ways. Transformers' own reads
    all of them.
    """
    import torch
    from transformers import DynamicCache

    module = original(bench.name, bench.cores, precision)
    head = getattr(module, bench.decoder.head)
    projection = getattr(module, bench.decoder.projection) if bench.decoder.projection else torch.nn.Identity()

    def forward(rows: np.ndarray, cache: Any, kept: slice = slice(-1, None)) -> np.ndarray:
        with torch.inference_mode():
            fed = projection(torch.from_numpy(rows)[None].to(getattr(torch, precision)))
            hidden = module.model(inputs_embeds=fed, past_key_values=cache, use_cache=True).last_hidden_state
            return head(hidden[:, kept])[0].float().numpy()

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
        PYTORCH_SPINS,
    )
