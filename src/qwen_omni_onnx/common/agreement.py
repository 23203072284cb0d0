"""How well graphs agree with golden cases: ``validate parity`` measures it, and ``qwen-omni-onnx verify`` again.

What is found is typed, and so are the verdicts on it: the reports, the gate, the model card, the published manifest and
``verify`` share these classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.case_stats import NEAR_TIE, CaseAgreement, CaseStats, CheckAgreement
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.runtime import GoldenRuntime
from qwen_omni_onnx.common.session import open_session, run

__all__ = [
    "BFLOAT16",
    "FLOAT",
    "NEAR_TIE",
    "QUANTIZED",
    "CaseAgreement",
    "CheckAgreement",
    "Verdict",
    "beside",
    "of_bfloat16",
    "of_component",
    "of_graph",
    "of_model",
    "of_runtime",
    "within_limit",
]

FLOAT, QUANTIZED = "float32", "quantized"  # the kinds of graphs
BFLOAT16 = "bfloat16"  # PyTorch in the checkpoint's own dtype: the yardstick, beside the kinds of graphs
_NO_KL = 1e-12  # nats; a yardstick of nothing would make any divergence infinitely large


@dataclass(frozen=True)
class Verdict:
    """One limit of the gate, and what was found.

    Attributes:
        kind: ``FLOAT`` or ``QUANTIZED``.
        subject: The check of parity, or the file stem of the graph, that it is about; "" for the component.
        metric: Short name of what was found.
        label: The metric in words.
        value: What was found; None, and what is no finite number, never passes.
        comparison: ``>=`` or ``<=``.
        limit: What ``value`` must be so.
        unit: Unit of both; may be empty.
        note: What a reader of a miss has to know; may be empty.
    """

    kind: str
    subject: str
    metric: str
    label: str
    value: float | None
    comparison: str
    limit: float
    unit: str = ""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the limit is kept."""
        return within_limit(self.value, self.comparison, self.limit)

    @property
    def of(self) -> str:
        """The subject and the kind of graphs."""
        return f"{self.subject} {self.kind}".lstrip()

    def __str__(self) -> str:
        value = "no number" if self.value is None else f"{self.value:.4g}"
        found = f"{value} {self.unit}".strip()
        return f"{self.of}: {self.label}: {found} (limit {self.comparison} {self.limit:g}{self.note})"

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Verdict:
        """Return a verdict as a manifest holds it.

        Raises:
            KeyError: A field is missing.
            ValueError: A field is of another type.
        """
        found = cls(**{field.name: content[field.name] for field in fields(cls)})
        texts = (found.kind, found.subject, found.metric, found.label, found.comparison, found.unit, found.note)
        numbers = [found.limit, *([] if found.value is None else [found.value])]
        whole = all(isinstance(text, str) for text in texts) and found.comparison in (">=", "<=")
        if not whole or not all(type(number) in (int, float) for number in numbers):
            raise ValueError("not a verdict")
        return found


def of_component(
    runtime: GoldenRuntime | None,
    graphs: Mapping[str, Path],
    companions: Path,
    ports: tuple[Sequence[str], Sequence[str]],
    recorded: Path,
    threads: int,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, CheckAgreement]:
    """Return how the graphs of a component agree, check by check: by its run-time, or its only graph alone.

    Args:
        runtime: The component's, of ``qwen_omni_onnx.runtimes``; None for a single graph.
        graphs: File of each graph, by stem.
        companions: Folder of what was exported beside the graphs.
        ports: Names of inputs and of outputs of a single graph.
        recorded: File of the golden cases.
        threads: Intra-op threads of each session; 0 lets ONNX Runtime choose.
        advance: Function that is called with the number of cases that are done since.

    Raises:
        UserError: The same as :func:`of_graph`.
    """
    if runtime is not None:
        return of_runtime(runtime, graphs, companions, recorded, threads, advance)
    (graph,) = graphs.values()
    return of_graph(graph, *ports, recorded, threads, advance)


def of_graph(
    graph: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    recorded: Path,
    threads: int,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, CheckAgreement]:
    """Return how one graph agrees, by the name of its only check: that of its first output.

    Args:
        graph: The graph's file.
        inputs: Names of its inputs.
        outputs: Names of its outputs; the first is compared, the others are lengths, and must be equal.
        recorded: The golden cases.
        threads: Intra-op threads of the session; 0 lets ONNX Runtime choose.
        advance: Function that is called with the number of cases that are done since.

    Raises:
        UserError: An output is missing, of another shape, NaN or infinite, or lengths differ; the message names graph
            and case.
    """
    session = open_session(graph, threads=threads)
    signal, *lengths = outputs
    found = CaseStats()
    for case, ports in golden.read(recorded):
        try:
            result = run(session, {name: ports[name] for name in inputs})
            found.add(case, ports[signal], result[signal])
            wrong = [name for name in lengths if not np.array_equal(ports[name], result[name])]
        except KeyError as error:
            raise UserError(f"{recorded}: case {case} has no {error}; record the golden cases again") from None
        except ValueError as error:
            raise UserError(f"{graph.name}: case {case}: {signal}: {error}") from None
        if wrong:
            given, expected = result[wrong[0]].tolist(), ports[wrong[0]].tolist()
            raise UserError(f"{graph.name}: case {case}: {wrong[0]}: {given}, expected {expected}")
        advance(1)
    return {signal: found.summary()}


def of_runtime(
    runtime: GoldenRuntime,
    graphs: Mapping[str, Path],
    companions: Path,
    recorded: Path,
    threads: int,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, CheckAgreement]:
    """Return how graphs agree as their run-time uses them, check by check.

    Args:
        runtime: The component's, of ``qwen_omni_onnx.runtimes``.
        graphs: File of each graph, by stem.
        companions: Folder of what was exported beside the graphs.
        recorded: The golden cases.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.
        advance: Called with 1 for each case that is done.

    Raises:
        UserError: The same as :func:`of_graph`.
    """
    return of_model(runtime, runtime.open_graphs(graphs, companions, threads), recorded, advance)


def of_model(
    runtime: GoldenRuntime, model: Any, recorded: Path, advance: Callable[[int], object] = lambda _: None
) -> dict[str, CheckAgreement]:
    """Return how graphs agree that a run-time has opened as ``model``, check by check: see :func:`of_runtime`."""
    found = {check: CaseStats() for check in runtime.CHECKS}
    for case, ports in golden.read(recorded):
        try:
            for check, expected, actual in runtime.checks(model, ports):
                waveform, logits = check in runtime.WAVEFORMS, check in runtime.LOGITS
                rest = _without_first(runtime, check, ports)
                found[check].add(case, expected, actual, waveform=waveform, logits=logits, rest=rest)
        except KeyError as error:
            raise UserError(f"{recorded}: case {case} has no {error}; record the golden cases again") from None
        except (ValueError, UserError) as error:
            raise UserError(f"case {case}: {error}") from None
        advance(1)
    return {check: cases.summary() for check, cases in found.items()}


def of_bfloat16(runtime: GoldenRuntime | None, outputs: Sequence[str], recorded: Path) -> dict[str, CheckAgreement]:
    """Return how PyTorch in bfloat16 agrees with PyTorch in float32, check by check: the yardstick of quantized graphs.

    Bfloat16 is what the checkpoint is published in, so its noise is what the model's own users hear.

    Args:
        runtime: The component's, of ``qwen_omni_onnx.runtimes``; None for a single graph, whose only check is its first
            output.
        outputs: Names of a single graph's outputs.
        recorded: The golden cases.

    Returns:
        Nothing for checks of which there is no yardstick.
    """
    found: dict[str, CaseStats] = {}
    for case, ports in golden.read(recorded):
        given = golden.read_yardstick(recorded, case)
        if not given:
            continue
        if runtime is None:
            pairs = iter([(outputs[0], ports[outputs[0]], given[outputs[0]])])
        else:
            pairs = runtime.yardstick(ports, given)
        for check, expected, actual in pairs:
            logits = runtime is not None and check in runtime.LOGITS
            rest = _without_first(runtime, check, ports)
            found.setdefault(check, CaseStats()).add(case, expected, actual, logits=logits, rest=rest)
    return {check: cases.summary() for check, cases in found.items()}


def beside(found: CheckAgreement, yardstick: CheckAgreement | None) -> CheckAgreement:
    """Return an agreement with how much noisier it is than the yardstick, by metrics that hold for any weights.

    Args:
        found: What :func:`of_graph` or :func:`of_runtime` says of a check.
        yardstick: What :func:`of_bfloat16` says of the same check; None: there is none to compare with.
    """
    if yardstick is None:
        return found
    found = replace(
        found,
        below_bfloat16_median_db=_less(yardstick.token_median_db, found.token_median_db),
        below_bfloat16_p95_db=_less(yardstick.token_p95_db, found.token_p95_db),
    )
    if found.kl is None or yardstick.kl is None:
        return found
    return replace(
        found,
        kl_over_bfloat16=found.kl / max(yardstick.kl, _NO_KL),
        top1_below_bfloat16=yardstick.top1 - found.top1,
    )


def within_limit(value: float | None, comparison: str, limit: float) -> bool:
    """Whether a value keeps a limit, ``>=`` or ``<=``; none, and what is no finite number, never does."""
    if value is None or not math.isfinite(value):
        return False
    return value >= limit if comparison == ">=" else value <= limit


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _without_first(runtime: GoldenRuntime | None, check: str, ports: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return which rows that a check compares are not the first token of a sequence, [rows]; None: no sequences."""
    if runtime is None or check not in runtime.SEQUENCES:
        return None
    lengths = ports["tokens"]
    rest = np.ones(int(lengths.sum()), bool)
    rest[(np.cumsum(lengths) - lengths)[lengths > 0]] = False
    return rest
