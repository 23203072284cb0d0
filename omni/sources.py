"""Where a component's inputs come from, as ``params.yaml`` says."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from omni.forms import Positive, Strict, by_key

__all__ = ["InputParams", "SyntheticCodes", "SyntheticParams"]


class SyntheticParams(Strict):
    """Made-up hidden states with the outliers of a language model's."""

    seed: Annotated[int, Field(ge=0)]
    outlier_channels: Annotated[int, Field(ge=0)]
    outlier_range: tuple[float, float]
    token_spread: Annotated[float, Field(ge=0)]
    batches: Positive
    tokens: Positive

    @field_validator("outlier_range", mode="before")
    @classmethod
    def _ordered(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
            if not 0 < value[0] <= value[1]:
                raise ValueError("two positive numbers, the smaller one first")
            return (float(value[0]), float(value[1]))
        raise ValueError("a list of two positive numbers")


class SyntheticCodes(Strict):
    """Made-up codes, all equally likely."""

    seed: Annotated[int, Field(ge=0)]
    clips: Annotated[int, Field(ge=2)]
    codes: Positive


class InputParams(Strict):
    """What the component is fed: another component's outputs, files in a folder, or synthetic activations or codes.

    Attributes:
        source: which.
        clips: of those that calibrate and of those that judge, how many, from the first; all, if None.
        synthetic: how they are made up.
    """

    source: Annotated[str, Field(min_length=1)]
    clips: Positive | None = None
    synthetic: (
        Annotated[
            Annotated[SyntheticParams, Tag("[activations]")] | Annotated[SyntheticCodes, Tag("[codes]")],
            Discriminator(by_key),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _described(self) -> InputParams:
        if self.source == "synthetic" and self.synthetic is None:
            raise ValueError("source: synthetic needs a block named synthetic that describes it")
        return self
