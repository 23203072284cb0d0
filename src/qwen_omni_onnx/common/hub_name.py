"""Names of repositories and revisions on the Hugging Face Hub, and ``hf://OWNER/REPO[@REVISION]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError

__all__ = ["HubName", "is_repository", "is_revision"]

_NAME = r"(?![.-])(?!.*(--|\.\.))[\w.-]{1,96}(?<![.-])"  # the hub's rule for names
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_REVISION = re.compile(r"(?![./-])(?!.*\.\.)[^\s~^:?*\[\\]{1,250}(?<![./])")  # Git's rule for names of branches
_OTHERS = ("buckets", "datasets", "kernels", "models", "spaces")  # what the hub's own addresses begin with


def is_repository(text: str) -> bool:
    """Return whether a text can be the name of a repository on the hub."""
    return _REPOSITORY.fullmatch(text) is not None


def is_revision(text: str) -> bool:
    """Return whether a text can be the name of a branch or a tag, or a commit."""
    return text.isprintable() and _REVISION.fullmatch(text) is not None


@dataclass(frozen=True)
class HubName:
    """A model repository on the hub, at a revision.

    Attributes:
        repository: ``owner/name``.
        revision: Branch, tag or commit.
    """

    repository: str
    revision: str = "main"

    @classmethod
    def of(cls, name: str) -> HubName:
        """Return what ``hf://OWNER/REPO[@REVISION]`` names.

        Raises:
            UserError: It names none, or no model repository.
        """
        said = one_line(name)
        repository, separator, revision = name.removeprefix("hf://").partition("@")
        kind = repository.partition("/")[0]
        if kind in _OTHERS:
            raise UserError(f"{said}: of {kind}; releases are in models: give hf://OWNER/REPO[@REVISION]")
        if not is_repository(repository) or repository.endswith(".git"):
            raise UserError(f"{said}: no name that the hub has for a repository; give hf://OWNER/REPO[@REVISION]")
        if separator and not is_revision(revision):
            raise UserError(f"{said}: no revision after the @; give a branch, a tag or a commit")
        return cls(repository, revision) if separator else cls(repository)
