"""Which model a checkpoint is, and under which licence it comes: what ``pull`` found, as ``source.json`` records it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "CHECKPOINT_NAME",
    "CONTRADICTORY",
    "LICENSE",
    "MODEL",
    "UNKNOWN",
    "UNRECOGNIZED",
    "Model",
    "checkpoint_name",
    "name_in",
]

MODEL = "model"  # the key of ``source.json`` that holds the record
CHECKPOINT_NAME = (
    "checkpoint_name"  # the key of a configuration that ``qwen_omni_onnx.common.configuration.read_config`` adds
)
LICENSE = "LICENSE"  # the file that travels with every component, where the checkpoint has it

# Names of licences (``license: other``) where the checkpoint does not say one that can be relied on.
UNKNOWN = "unknown"  # neither a LICENSE file nor a licence in a model card
UNRECOGNIZED = "unrecognized"  # a LICENSE file alone, whose text this program does not know
CONTRADICTORY = "contradictory"  # the model card says one, the LICENSE file is another


@dataclass(frozen=True)
class Model:
    """A checkpoint's identity.

    Attributes:
        name: The model's name, as ``Qwen2.5-Omni-7B``: of the repository, or of the folder.
        repository: The hub's ``owner/name``; None where it is not known.
        revision: The commit; None where it is not known.
        license: The licence by the hub's identifier, or ``other``.
        license_name: The licence's name where ``license`` is ``other``, else None.
        license_link: The licence's text: a file of the checkpoint or an address; None where the checkpoint gives none.
        license_evidence: What each file of the checkpoint said of the licence.
        base_model: The hub's names of the models that this one was made from, as its card gives them.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    license: str = "other"
    license_name: str | None = UNKNOWN
    license_link: str | None = None
    license_evidence: Mapping[str, str] = field(default_factory=dict)
    base_model: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Mapping[str, Any], where: Path) -> Model:
        """Return the identity that a ``source.json`` records.

        Args:
            source: The content.
            where: The file, for the message.

        Raises:
            UserError: It records none, or not as this version does.
        """
        try:
            found = cls(**source[MODEL])
        except (KeyError, TypeError):
            raise UserError(f"{where}: does not say which model this is; pull the component again") from None
        return dataclasses.replace(found, base_model=tuple(found.base_model))

    def record(self) -> dict[str, Any]:
        """Return what ``source.json`` holds of it."""
        return {**dataclasses.asdict(self), "base_model": list(self.base_model)}

    @property
    def slug(self) -> str:
        """The name as a repository on the hub may have it, in lower case: ``qwen2.5-omni-7b``."""
        plain = re.sub(r"[^a-z0-9.]+", "-", self.name.lower())
        return re.sub(r"\.{2,}|[.-]*-[.-]*", "-", plain)[:64].strip("-.") or "checkpoint"


def name_in(source: Any) -> str | None:
    """Return the model's name that the content of a ``source.json`` gives; None where it gives none."""
    try:
        name = source[MODEL]["name"]
    except (KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def checkpoint_name(folder: Path) -> dict[str, str]:
    """Return the model's name under ``CHECKPOINT_NAME``, from a folder's ``source.json``; nothing where it has none.

    Raises:
        UserError: ``source.json`` is not JSON.
    """
    path = folder / "source.json"
    name = name_in(artifact.read_json(path)) if path.is_file() else None
    return {} if name is None else {CHECKPOINT_NAME: name}
