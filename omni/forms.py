"""Forms that values of ``params.yaml`` take, and how the ones that may take two are told apart.

Pydantic tries each type of a union and complains of all; where it is told which one is meant, it complains of that.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

__all__ = [
    "EACH",
    "ONE",
    "LengthOf",
    "Limit",
    "LimitOf",
    "NumberOf",
    "Positive",
    "Repository",
    "Revision",
    "Share",
    "ShareOf",
    "Strict",
    "by_graph",
    "by_key",
    "is_repository",
]

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Limit = Annotated[float, Field(gt=0)]
_NAME = r"(?![.-])(?!.*(--|\.\.))[\w.-]{1,96}(?<![.-])"  # by the hub's own rule
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_REVISION = re.compile(r"(?![./-])(?!.*\.\.)[^\s~^:?*\[\\]{1,250}(?<![./])")  # by Git's rule for names of branches
ONE, EACH = "[one]", "[each]"  # which form of a value was read: left out of what is told to a user


def by_graph(value: Any) -> str:
    """Tell a block from a table of blocks."""
    each = isinstance(value, dict) and value and all(isinstance(entry, dict | BaseModel) for entry in value.values())
    return EACH if each else ONE


def by_name(value: Any) -> str:
    """Tell a number from a table of numbers."""
    return EACH if isinstance(value, dict) else ONE


def by_key(value: Any) -> str:
    """Tell made-up codes from made-up activations, as read or as validated."""
    given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "[codes]" if {"clips", "codes"} & set(given) else "[activations]"


def is_repository(text: str) -> bool:
    """Whether a text can be the name of a repository on the hub."""
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
NumberOf = Annotated[Annotated[float, Tag(ONE)] | Annotated[dict[str, float], Tag(EACH)], Discriminator(by_name)]
LimitOf = Annotated[Annotated[Limit, Tag(ONE)] | Annotated[dict[str, Limit], Tag(EACH)], Discriminator(by_name)]
LengthOf = Annotated[Annotated[Positive, Tag(ONE)] | Annotated[dict[str, Positive], Tag(EACH)], Discriminator(by_name)]
ShareOf = Annotated[Annotated[Share, Tag(ONE)] | Annotated[dict[str, Share], Tag(EACH)], Discriminator(by_name)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
