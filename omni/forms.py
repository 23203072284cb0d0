"""Types of values in ``params.yaml``, with their constraints."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["Limit", "Positive", "Repository", "Revision", "Share", "Strict", "is_repository"]

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Limit = Annotated[float, Field(gt=0)]
_NAME = r"(?![.-])(?!.*(--|\.\.))[\w.-]{1,96}(?<![.-])"  # the hub's rule for names
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_REVISION = re.compile(r"(?![./-])(?!.*\.\.)[^\s~^:?*\[\\]{1,250}(?<![./])")  # Git's rule for names of branches


def is_repository(text: str) -> bool:
    """Return whether a text can be the name of a repository on the hub."""
    return _REPOSITORY.fullmatch(text) is not None


def _repository(text: str) -> str:
    if not is_repository(text):
        raise ValueError("give owner/name, as the hub does: Qwen/Qwen2.5-Omni-7B")
    return text


def _revision(text: str) -> str:
    if not (text.isprintable() and _REVISION.fullmatch(text)):
        raise ValueError("give a branch, a tag or a commit")
    return text


Repository = Annotated[str, AfterValidator(_repository)]
Revision = Annotated[str, AfterValidator(_revision)]


class Strict(BaseModel):
    """Base of the tables: unknown keys and values of other types are refused, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
