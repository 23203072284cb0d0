"""The limits that the gate judges by, as ``params.yaml`` gives them."""

from __future__ import annotations

from pydantic import model_validator

from omni.forms import Limit, LimitOf, NumberOf, Share, ShareOf, Strict

__all__ = ["GateParams", "Limits"]


class Limits(Strict):
    """Every limit that one graph, or one check of parity, is judged by; one that is not given is not judged."""

    float_sqnr_db: float | None = None
    float_max_abs: Limit | None = None
    float_stft: Limit | None = None
    float_top1: Share | None = None
    quantized_sqnr_db: float | None = None
    quantized_stft: Limit | None = None
    quantized_top1: Share | None = None
    quantized_near_tie: Share | None = None
    quantized_kl: Limit | None = None
    quantized_share: Share | None = None
    quantized_mb: Limit | None = None
    latency_share: Limit | None = None
    build_memory_mb: Limit
    build_memory_tensors: Limit
    session_memory_mb: Limit | None = None


class GateParams(Strict):
    """The limits of a component.

    Of one with several graphs, those that are tables here are by graph, or by check where they judge parity.
    """

    float_sqnr_db: NumberOf | None = None
    float_max_abs: Limit | None = None
    float_stft: LimitOf | None = None
    float_top1: ShareOf | None = None
    quantized_sqnr_db: NumberOf | None = None
    quantized_stft: LimitOf | None = None
    quantized_top1: ShareOf | None = None
    quantized_near_tie: LimitOf | None = None
    quantized_kl: LimitOf | None = None
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

    def of(self, part: str) -> Limits:
        """Return the limits of one graph, or of one check of parity: of every table, what it says of that."""
        picked = {name: getattr(self, name) for name in Limits.model_fields}
        for name, value in picked.items():
            if isinstance(value, dict):
                picked[name] = value.get(part)
        return Limits(**picked)
