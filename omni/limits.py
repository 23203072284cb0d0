"""The gate's limits, as ``params.yaml`` sets them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field, model_validator

from omni.forms import Limit, Share, Strict
from omni.patterns import first_match, unmatched

__all__ = ["CheckLimits", "GraphLimits", "Limits", "SpeechLimits"]


class CheckLimits(Strict):
    """The limits of one parity check; a metric without a limit is not judged.

    Quantized graphs are judged relative to PyTorch in bfloat16, which holds for any weights and any depth;
    ``quantized_...`` are absolute limits, for checks without a recording in bfloat16.
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
        """Whether a limit judges the accuracy of the float32 graphs."""
        return self.float_sqnr_db is not None or self.float_max_abs is not None

    @property
    def judges_quantized(self) -> bool:
        """Whether a limit judges the accuracy of the quantized graphs."""
        return any(
            limit is not None for limit in (self.below_bfloat16_median_db, self.quantized_sqnr_db, self.quantized_top1)
        )

    @property
    def judges_classes(self) -> bool:
        """Whether the last axis of the checked output holds classes, which a limit on top-1 agreement implies."""
        return any(
            limit is not None
            for limit in (self.float_top1, self.quantized_top1, self.quantized_near_tie, self.top1_below_bfloat16)
        )


class GraphLimits(Strict):
    """The limits of one graph.

    Attributes:
        latency_share: Lower limit on the share of the speed-up that this machine's kernels could give, at every
            length.
        session_memory_mb: Upper limit on the memory, beyond the graph's data, of a process that loads and runs the
            graph, in 2^20 bytes.
        session_memory_share: What that limit grows by with the graph's data, as a share of it: what kernels lay out
            anew beside the weights.
    """

    latency_share: Limit | None = None
    session_memory_mb: Limit | None = None
    session_memory_share: Share = 0.0


class Limits(Strict):
    """The limits that the gate judges a component by.

    The limit on the memory of export and of quantize, beyond that of their libraries, is the sum of ``build_memory_mb``
    and ``build_memory_tensors`` times the size of the largest tensor.

    Attributes:
        checks: Limits on accuracy, by parity check.
        graphs: Limits on latency and memory, by graph.
        quantized_share: Upper limit on the size of the quantized graphs and their data, as a share of that of the
            float32 graphs.
        build_memory_mb: Constant term of the limit on build memory, in 2^20 bytes.
        build_memory_tensors: Factor on the size of the largest tensor in the limit on build memory.
    """

    checks: Annotated[dict[str, CheckLimits], Field(min_length=1)]
    graphs: Annotated[dict[str, GraphLimits], Field(min_length=1)]
    quantized_share: Share | None = None
    build_memory_mb: Limit
    build_memory_tensors: Limit

    @model_validator(mode="after")
    def _judges_the_float_graphs(self) -> Limits:
        if not any(check.judges_float for check in self.checks.values()):
            raise ValueError("checks: one must have float_sqnr_db or float_max_abs: nothing else judges float32 graphs")
        return self

    def check(self, name: str) -> CheckLimits:
        """Return the limits of a check; no limit is set for a check that is not in ``checks``."""
        return self.checks.get(name) or CheckLimits()

    def graph(self, stem: str) -> GraphLimits:
        """Return the limits of a graph; no limit is set for a graph that ``graphs`` does not match."""
        return first_match(self.graphs, stem) or GraphLimits()

    def idle(self, checks: Collection[str], stems: Collection[str]) -> list[str]:
        """Return the keys of limits that judge nothing, because no check or graph has that name."""
        idle = [f"checks.{name}" for name in self.checks if name not in checks]
        return idle + [f"graphs.{key}" for key in unmatched(self.graphs, stems)]


class SpeechLimits(Strict):
    """What a chain of quantized graphs may lose by ear beside another chain, for trained weights.

    Attributes:
        speaking_points: Percentage points of words, or characters, by which more of the speech is misunderstood.
        hearing_points: The same of what the Thinker writes down of a sound.
        mos: Mean opinion score that is lost.
        similarity: Least cosine between both chains' voices.
        duration: Most times as long, or as short, for each letter of the text.
        faults: Replies that are empty, run on or end early, where the other chain's do not.
    """

    speaking_points: Annotated[float, Field(ge=0)]
    hearing_points: Annotated[float, Field(ge=0)]
    mos: Annotated[float, Field(ge=0, le=4)]
    similarity: Share
    duration: Annotated[float, Field(ge=1)]
    faults: Annotated[int, Field(ge=0)]
