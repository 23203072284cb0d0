"""Does the graph compute what PyTorch computed? All graphs against the golden cases."""

from __future__ import annotations

import importlib
from typing import Any

from omni.resources import progress
from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.agreement import beside, of_bfloat16, of_graph, of_runtime
from qwen_omni_onnx.common.errors import UserError
from validate.subject import BFLOAT16, QUANTIZED, Subject

__all__ = ["measure"]


def measure(subject: Subject, threads: int) -> dict[str, dict[str, Any]]:
    """Return ``{check: {kind: what was found}}``; the only graph of a component has one check, named "".

    What was found: see :func:`qwen_omni_onnx.common.agreement.of_graph`. Where golden cases hold the yardstick,
    PyTorch in bfloat16 is a kind of its own, and what is quantized is compared with it: see
    :func:`qwen_omni_onnx.common.agreement.beside`.

    Raises:
        UserError: an output is missing, of another shape, NaN or infinite, or lengths differ; the message names graph
            and case.
    """
    inputs, outputs = ([port.name for port in ports] for ports in (subject.contract.inputs, subject.contract.outputs))
    runtime = importlib.import_module(subject.component.runtime) if subject.component.runtime else None
    checks: dict[str, dict[str, Any]] = {check: {} for check in (runtime.CHECKS if runtime else ("",))}
    for kind in subject.kinds:
        if runtime is None:
            checks[""][kind] = of_graph(subject.graphs[kind], inputs, outputs, subject.golden, threads)
            continue
        with progress(f"parity {kind}", len(golden.cases(subject.golden))) as advance:
            graphs, companions = subject.of_kind(kind), subject.companions
            try:
                agreement = of_runtime(runtime, graphs, companions, subject.golden, threads, advance)
            except UserError as problem:
                raise UserError(f"{subject.name} {kind}: {problem}") from None
        for check, found in agreement.items():
            checks[check][kind] = found
    for check, yardstick in of_bfloat16(runtime, outputs, subject.golden).items():
        if QUANTIZED in checks[check]:
            checks[check][QUANTIZED] |= beside(checks[check][QUANTIZED], yardstick)
        checks[check][BFLOAT16] = yardstick
    return checks
