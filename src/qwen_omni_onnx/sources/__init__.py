"""Where releases are had from: a folder, a repository of the Hugging Face Hub, an OCI registry."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.hub_environment import require_environment
from qwen_omni_onnx.common.hub_name import HubName

__all__ = ["SMALL", "Source", "opened"]

SMALL = 64 * 2**20  # bytes of a file that is read whole into memory: a manifest has 0.3 MB


class Source(Protocol):
    """A place that releases are in. It may be a stranger's: nothing that it says is believed before it is checked.

    Every method raises a :class:`UserError` of one line for what the user can mend.
    """

    def paths(self) -> list[str]:
        """Return the paths of all files of the release, as ``COMPONENT/NAME/...``."""
        ...

    def read(self, path: str) -> bytes:
        """Return the content of a small file.

        Args:
            path: Its path.
        """
        ...

    def fetch(self, path: str, place: Path, nbytes: int) -> None:
        """Write a file to ``place``, from where an earlier call that was cut off has come to.

        Args:
            path: Its path.
            place: The file to write; a part of it may be there.
            nbytes: Its size; no more is written.
        """
        ...


def opened(name: str) -> Source:
    """Return the source of a name: a folder, ``hf://OWNER/REPO[@REVISION]`` or ``oci://HOST/NAME[:TAG|@DIGEST]``.

    Raises:
        UserError: The name is none, or there is nothing of that name.
    """
    kind, separator, _ = name.partition("://")
    if name and not separator:
        from qwen_omni_onnx.sources.folder import Folder

        return Folder(Path(name))
    if kind == "hf":
        repository = HubName.of(name)
        require_environment()  # huggingface_hub reads it when it is imported
        from qwen_omni_onnx.sources.hub import Hub

        return Hub(repository)
    if kind == "oci":
        try:
            from qwen_omni_onnx.sources.oci import Repository
        except ImportError as error:
            raise UserError(f"{name}: {error}: pip install 'oras>=0.2.43'") from None
        return Repository(name)
    raise UserError(f"{name}: give a folder, hf://OWNER/REPO[@REVISION], or oci://HOST/NAME[:TAG]")
