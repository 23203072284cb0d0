"""Does the graph compute what PyTorch computed? All graphs against the golden cases."""

from __future__ import annotations

import importlib
from typing import Any

from omni import golden
from omni.agreement import of_graph, of_runtime
from omni.errors import Problem
from omni.resources import progress
from validate.subject import Subject

__all__ = ["measure"]


def measure(subject: Subject, threads: int) -> dict[str, dict[str, Any]]:
    """Return ``{check: {kind: what was found}}``; the only graph of a component has one check, named "".

    What was found: see :func:`omni.agreement.of_graph`.

    Raises:
        Problem: an output is missing, of another shape, NaN or infinite, or lengths differ; the message names graph
            and case.
    """
    inputs, outputs = ([port.name for port in ports] for ports in (subject.contract.inputs, subject.contract.outputs))
    if not subject.component.runtime:
        alone = {
            kind: of_graph(path, inputs, outputs, subject.golden, threads) for kind, path in subject.graphs.items()
        }
        return {"": alone}
    runtime = importlib.import_module(subject.component.runtime)
    checks: dict[str, dict[str, Any]] = {check: {} for check in runtime.CHECKS}
    for kind in subject.kinds:
        with progress(f"parity {kind}", len(golden.cases(subject.golden))) as advance:
            graphs, companions = subject.of_kind(kind), subject.companions
            try:
                agreement = of_runtime(runtime, graphs, companions, subject.golden, threads, advance)
            except Problem as problem:
                raise Problem(f"{subject.name} {kind}: {problem}") from None
        for check, found in agreement.items():
            checks[check][kind] = found
    return checks
