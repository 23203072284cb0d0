"""A repository of an OCI registry that holds releases: ``oci://HOST/NAME[:TAG|@DIGEST]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.registry.client import RangeIgnored, Reference, Registry
from qwen_omni_onnx.registry.manifest import read_manifest, read_small
from qwen_omni_onnx.sources import SMALL

__all__ = ["Repository"]

_USUAL_TAG = "latest"


class Repository:
    """A release in a registry, at one digest; see :class:`qwen_omni_onnx.sources.Source`.

    Args:
        name: ``oci://HOST/NAME``, with a tag or a digest; with neither, the tag ``latest`` is taken.

    Raises:
        UserError: The name is none, there is nothing of that name, or it is no release.
    """

    def __init__(self, name: str) -> None:
        reference = Reference.parse(name)
        which = reference.digest or reference.tag or _USUAL_TAG
        self._registry = Registry(reference)
        manifest = read_manifest(self._registry, which)
        if manifest is None:
            raise UserError(f"{reference}: no {which} in it; check the name, and the tag or the digest")
        self._layers = manifest.layers  # read once: a tag that moves meanwhile does not mix two releases

    def paths(self) -> list[str]:
        """Return the paths of all files of the release."""
        return sorted(self._layers)

    def read(self, path: str) -> bytes:
        """Return the content of a small file."""
        return read_small(self._registry, self._layer(path), path, SMALL)

    def fetch(self, path: str, place: Path, nbytes: int) -> None:
        """Write a file from where an earlier call has come to; no more than ``nbytes`` of it."""
        layer = self._layer(path)
        if layer["size"] != nbytes:
            raise UserError(
                f"{self._registry.reference}: {path}: {layer['size']} bytes in the registry, {nbytes} as published; "
                "do not use it"
            )
        there = place.stat().st_size if place.is_file() else 0
        with place.open("ab") as written:
            try:
                for block in self._registry.blob(layer["digest"], there, nbytes, path):
                    written.write(block)
            except RangeIgnored as error:
                raise UserError(f"{error}; remove {place} to let it") from None

    def _layer(self, path: str) -> dict[str, Any]:
        layer = self._layers.get(path)
        if layer is None:
            raise UserError(f"{self._registry.reference}: no {one_line(path)} in it; the release is not whole")
        return layer
