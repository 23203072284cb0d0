"""Every way to run a decoder beside PyTorch and beside our float32 graph, in turns: two are in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.decoder.bench import FLOAT32, TOKENS, Bench
from benchmarks.decoder.ways import BASELINES, PYTORCH, Contender, Run
from benchmarks.measure import Turns, Variant, speed, take_turns
from omni.quiet import quiet
from omni.resources import progress
from qwen_omni_onnx.common.agreement import NEAR_TIE
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import compare as distance

__all__ = ["FEWEST", "PATIENCE", "compare", "opened"]

PATIENCE, FEWEST = 50.0, 3  # seconds for which two ways take turns, but no fewer rounds

Parts = Mapping[str, Turns]  # of a prompt, and of a step


def compare(bench: Bench, made: Mapping[str, Callable[[], Contender]], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way: how close to PyTorch, and how fast. ``made`` makes them, both baselines among them."""
    rows: dict[str, dict[str, Any]] = {name: {"way": name} for name in made}
    turns: dict[str, dict[str, Parts]] = {name: {} for name in made}
    pairs = [(PYTORCH, name) for name in made if name != PYTORCH]
    pairs += [(FLOAT32, name) for name in made if name not in BASELINES]
    expected: np.ndarray | None = None
    baseline: Contender | None = None
    with progress("ways", len(pairs)) as advance:
        for against, name in pairs:
            if baseline is None or baseline.name != against:
                baseline = None  # gigabytes, which the next one needs
                baseline = opened(made[against])
            if expected is None:
                expected = baseline.teacher_forced(bench.rows[:TOKENS])
                rows[against] |= _judged(baseline, expected, expected)
            way = opened(made[name])
            if against == PYTORCH:
                rows[name] |= _judged(way, expected, way.teacher_forced(bench.rows[:TOKENS]))
            turns[name][against] = _turns(bench, baseline, way, rounds)
            del way
            advance(1)
    of_both = turns[FLOAT32][PYTORCH]
    turns[PYTORCH] = {PYTORCH: _seen(of_both, 0, 0), FLOAT32: _seen(of_both, 1, 0)}
    turns[FLOAT32][FLOAT32] = _seen(of_both, 1, 1)
    return [{**row, **_speeds(turns[name])} for name, row in rows.items()]


def opened(make: Callable[[], Contender]) -> Contender:
    """Make a way, once what is no longer needed is out of memory."""
    gc.collect()
    with quiet():
        return make()


def _judged(way: Contender, expected: np.ndarray, given: np.ndarray) -> dict[str, Any]:
    """Return a way's size, and how close its logits come to PyTorch's."""
    try:
        agreement = distance(expected, given, NEAR_TIE)
    except ValueError as error:
        raise UserError(f"{way.name}: logits: {error}") from None
    return {"mb": way.nbytes / 1e6, "sqnr_db": agreement.sqnr_db, "top1": agreement.top1}


def _turns(bench: Bench, baseline: Contender, way: Contender, rounds: int) -> Parts:
    prompt, with_next = bench.rows[: bench.past], bench.rows[: bench.past + 1]

    def turns(run: Callable[[Contender], Run]) -> Turns:
        first, second = (_variant(one, run(one)) for one in (baseline, way))
        return take_turns(first, second, rounds, PATIENCE, FEWEST)

    return {"step": turns(lambda one: one.step(with_next)), "prefill": turns(lambda one: one.prefill(prompt))}


def _variant(way: Contender, run: Run) -> Variant:
    return Variant(way.name, lambda _: run(), way.nbytes, way.spins)


def _seen(parts: Parts, baseline: int, own: int) -> Parts:
    """Return the same turns with other roles: 0 is the baseline here, 1 the way."""
    return {part: (turns[baseline], turns[own]) for part, turns in parts.items()}


def _speeds(turns: Mapping[str, Parts]) -> dict[str, Any]:
    """Return of a step and of a prompt the median time over all turns, and the speed beside each baseline."""
    return {
        part: {
            "ms": float(np.median([seconds for parts in turns.values() for seconds in parts[part][1]]) * 1e3),
            "speed": {against: speed(*parts[part]) for against, parts in turns.items()},
        }
        for part in ("step", "prefill")
    }
