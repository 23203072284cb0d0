"""Types of values in ``params.yaml``, with their constraints."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from qwen_omni_onnx.common.hub_name import is_repository, is_revision

__all__ = ["Limit", "Positive", "Repository", "Revision", "Share", "Strict"]

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Limit = Annotated[float, Field(gt=0)]


def _repository(text: str) -> str:
    if not is_repository(text):
        raise ValueError("give owner/name, as the hub does: Qwen/Qwen2.5-Omni-7B")
    return text


def _revision(text: str) -> str:
    if not is_revision(text):
        raise ValueError("give a branch, a tag or a commit")
    return text


Repository = Annotated[str, AfterValidator(_repository)]
Revision = Annotated[str, AfterValidator(_revision)]


class Strict(BaseModel):
    """Base of the tables: unknown keys and values of other types are refused, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
