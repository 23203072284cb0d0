"""Where releases go: a folder, a repository of the Hugging Face Hub, an OCI registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["File", "Target"]


@dataclass(frozen=True)
class File:
    """A file of a release.

    Attributes:
        content: Where it is, or its bytes.
        nbytes: Its size.
        sha256: Its SHA-256, in hexadecimal.
    """

    content: Path | bytes
    nbytes: int
    sha256: str


class Target(Protocol):
    """A place that releases are put into, named ``DIR``, ``hf://OWNER/REPO[@REVISION]`` or ``oci://HOST/NAME:TAG``.

    A release is a table of files by path: ``COMPONENT/NAME/...``, and ``README.md``. Every method raises a
    :class:`qwen_omni_onnx.common.errors.UserError` of one line for what the user can mend: no or wrong credentials, no
    such repository, a quota, an answer of the server that is none, a connection that ends.
    """

    def read(self, path: str) -> bytes | None:
        """Return a small file that is there; None if there is none, or nothing at all.

        Args:
            path: Its path in the release.
        """
        ...

    def missing(self, files: Mapping[str, File]) -> list[str]:
        """Return the paths of those files whose bytes are not there, and would be sent.

        Args:
            files: The release.
        """
        ...

    def put(self, files: Mapping[str, File], components: Sequence[str]) -> str:
        """Make the release what is there, all at once: before, readers find the old one, and after, the new one.

        Files of these components that are not in ``files`` go; those of other components stay. What an earlier call
        that was cut off has sent is not sent again.

        Args:
            files: The release.
            components: Components that are in it.

        Returns:
            Where it can be had, as ``qwen-omni-onnx pull`` takes it: with the commit or the digest.
        """
        ...
