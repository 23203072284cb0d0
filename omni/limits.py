"""The limits that the gate judges by, as ``params.yaml`` gives them."""

from __future__ import annotations

from pydantic import model_validator

from omni.forms import Limit, LimitOf, NumberOf, Share, ShareOf, Strict

__all__ = ["GateParams", "Limits"]


class Limits(Strict):
    """Every limit that one graph, or one check of parity, is judged by; one that is not given is not judged."""

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
    quantized_share: Share | None = None
    quantized_mb: Limit | None = None
    latency_share: Limit | None = None
    build_memory_mb: Limit
    build_memory_tensors: Limit
    session_memory_mb: Limit | None = None


class GateParams(Strict):
    """The limits of a component.

    Of one with several graphs, those that are tables here are by graph, or by check where they judge parity. Accuracy
    of quantized graphs is judged by the yardstick, how far below PyTorch in bfloat16 they are, which holds for any
    weights and any depth; ``quantized_...`` are absolute, for what no yardstick fits.
    """

    float_sqnr_db: NumberOf | None = None
    float_median_db: NumberOf | None = None
    float_max_abs: Limit | None = None
    float_stft: LimitOf | None = None
    float_top1: ShareOf | None = None
    quantized_sqnr_db: NumberOf | None = None
    quantized_stft: LimitOf | None = None
    quantized_top1: ShareOf | None = None
    quantized_near_tie: ShareOf | None = None
    quantized_kl: LimitOf | None = None
    below_bfloat16_median_db: NumberOf | None = None
    below_bfloat16_p95_db: NumberOf | None = None
    kl_over_bfloat16: LimitOf | None = None
    top1_below_bfloat16: ShareOf | None = None
    quantized_share: Share | None = None
    quantized_mb: Limit | None = None
    latency_share: LimitOf | None = None
    build_memory_mb: Limit
    build_memory_tensors: Limit
    session_memory_mb: LimitOf

    @model_validator(mode="after")
    def _judges_the_float_graph(self) -> GateParams:
        if self.float_sqnr_db is None and self.float_max_abs is None:
            raise ValueError("float_sqnr_db or float_max_abs must be given: nothing else judges the float32 graph")
        return self

    @property
    def judges_accuracy(self) -> bool:
        """Whether something here judges how close the quantized graphs come."""
        return any(
            limit is not None for limit in (self.below_bfloat16_median_db, self.quantized_sqnr_db, self.quantized_top1)
        )

    @property
    def judges_classes(self) -> bool:
        """Whether the last axis of the output is something to choose from: without a limit on top-1, it is not."""
        return any(
            limit is not None for limit in (self.quantized_top1, self.quantized_near_tie, self.top1_below_bfloat16)
        )

    def of(self, part: str) -> Limits:
        """Return the limits of one graph, or of one check of parity: of every table, what it says of that."""
        picked = {name: getattr(self, name) for name in Limits.model_fields}
        for name, value in picked.items():
            if isinstance(value, dict):
                picked[name] = value.get(part)
        return Limits(**picked)
