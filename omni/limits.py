"""The limits that the gate judges by, as ``params.yaml`` gives them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field, model_validator

from omni.forms import Limit, Share, Strict
from omni.patterns import first_match, unmatched

__all__ = ["CheckLimits", "GraphLimits", "Limits"]


class CheckLimits(Strict):
    """The limits of one check of parity; one that is not given is not judged.

    Accuracy of quantized graphs is judged by the yardstick, how far below PyTorch in bfloat16 they are, which holds for
    any weights and any depth; ``quantized_...`` are absolute, for what no yardstick fits.
    """

    float_sqnr_db: float | None = None
    float_median_db: float | None = None
    float_max_abs: Limit | None = None
    float_stft: Limit | None = None
    float_top1: Share | None = None
    quantized_sqnr_db: float | None = None
    quantized_stft: Limit | None = None
    quantized_top1: Share | None = None
    quantized_near_tie: Share | None = None
    quantized_kl: Limit | None = None
    below_bfloat16_median_db: float | None = None
    below_bfloat16_p95_db: float | None = None
    kl_over_bfloat16: Limit | None = None
    top1_below_bfloat16: Share | None = None

    @property
    def judges_float(self) -> bool:
        """Whether something here judges how close the float32 graphs come."""
        return self.float_sqnr_db is not None or self.float_max_abs is not None

    @property
    def judges_quantized(self) -> bool:
        """Whether something here judges how close the quantized graphs come."""
        return any(
            limit is not None for limit in (self.below_bfloat16_median_db, self.quantized_sqnr_db, self.quantized_top1)
        )

    @property
    def judges_classes(self) -> bool:
        """Whether the last axis of what is checked is something to choose from: without a limit on top-1, it is not."""
        return any(
            limit is not None
            for limit in (self.float_top1, self.quantized_top1, self.quantized_near_tie, self.top1_below_bfloat16)
        )


class GraphLimits(Strict):
    """The limits of one graph.

    Attributes:
        latency_share: Least share of the speed-up that this machine's own kernels could give, at every length.
        session_memory_mb: Most memory of a process that loads a graph and runs it, above the graph's data, in 2^20
            bytes.
    """

    latency_share: Limit | None = None
    session_memory_mb: Limit | None = None


class Limits(Strict):
    """The limits that the gate judges a component by.

    Attributes:
        checks: Limits of parity, by check.
        graphs: Limits of latency and memory, by graph.
        quantized_share: Most bytes of the quantized graphs and their data, as a share of the float32 ones'.
        quantized_mb: The same in megabytes.
        build_memory_mb: Most memory of export and of quantize above that of their libraries, in 2^20 bytes, plus
        build_memory_tensors: ... this many times the largest tensor.
    """

    checks: Annotated[dict[str, CheckLimits], Field(min_length=1)]
    graphs: Annotated[dict[str, GraphLimits], Field(min_length=1)]
    quantized_share: Share | None = None
    quantized_mb: Limit | None = None
    build_memory_mb: Limit
    build_memory_tensors: Limit

    @model_validator(mode="after")
    def _judges_the_float_graphs(self) -> Limits:
        if not any(check.judges_float for check in self.checks.values()):
            raise ValueError("checks: one must have float_sqnr_db or float_max_abs: nothing else judges float32 graphs")
        return self

    def check(self, name: str) -> CheckLimits:
        """Return the limits of a check; none are set for one that is not named."""
        return self.checks.get(name) or CheckLimits()

    def graph(self, stem: str) -> GraphLimits:
        """Return the limits of a graph; none are set for one that is not named."""
        return first_match(self.graphs, stem) or GraphLimits()

    def idle(self, checks: Collection[str], stems: Collection[str]) -> list[str]:
        """Return the keys of limits that judge nothing, as there is no check or graph of that name."""
        idle = [f"checks.{name}" for name in self.checks if name not in checks]
        return idle + [f"graphs.{key}" for key in unmatched(self.graphs, stems)]
