"""Compares all graphs with the golden cases."""

from __future__ import annotations

from functools import partial

from omni.resources import progress
from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.agreement import (
    BFLOAT16,
    FLOAT,
    QUANTIZED,
    CheckAgreement,
    beside,
    of_bfloat16,
    of_component,
    of_model,
)
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.runtimes import DECODERS, RUNTIMES
from validate import segmented
from validate.measured import MeasuredComponent

__all__ = ["measure"]


def measure(measured: MeasuredComponent, threads: int) -> dict[str, dict[str, CheckAgreement]]:
    """Return the agreement with the golden cases, by check and by kind of graphs.

    If the golden cases hold outputs of PyTorch in bfloat16, these are a kind of their own, and quantized graphs are
    compared with them: see :func:`qwen_omni_onnx.common.agreement.beside`.

    Args:
        measured: The component.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.

    Raises:
        UserError: An output is missing, has another shape, or is NaN or infinite, or lengths differ; the message names
            graph and case.
    """
    ports, runtime = measured.ports, RUNTIMES.get(measured.name)
    checks: dict[str, dict[str, CheckAgreement]] = {}
    yardsticks = of_bfloat16(runtime, ports[1], measured.golden)
    for kind in measured.kinds:
        graphs, companions = measured.files(kind), measured.companions
        with progress(f"parity {kind}", len(golden.cases(measured.golden))) as advance:
            try:
                if kind == FLOAT and segmented.needed(measured):
                    question = partial(of_model, DECODERS[measured.name], recorded=measured.golden)
                    found = segmented.ask(measured, question)
                else:
                    found = of_component(runtime, graphs, companions, ports, measured.golden, threads, advance)
            except UserError as problem:
                raise UserError(f"{measured.name} {kind}: {problem}") from None
        for check, agreement in found.items():
            compared = beside(agreement, yardsticks.get(check)) if kind == QUANTIZED else agreement
            checks.setdefault(check, {})[kind] = compared
    for check, yardstick in yardsticks.items():
        checks[check][BFLOAT16] = yardstick
    return checks
