"""The manifest of a release in a registry: an image manifest with a layer for each file, and its path beside it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.registry.client import Registry

__all__ = ["ARTIFACT_TYPE", "FILE_PATH", "LARGEST", "TITLE", "Manifest", "read_manifest", "read_small"]

# ModelPack, https://github.com/modelpack/model-spec: specs-go/v1.
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
FILE_PATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"  # by which `oras pull` names files

LARGEST = 4 * 2**20  # bytes of a manifest: registries take no larger ones
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """A manifest that is in a registry.

    Attributes:
        digest: Its own digest.
        artifact_type: What it says that it is; empty if nothing.
        layers: Descriptors of the files, by path.
    """

    digest: str
    artifact_type: str
    layers: dict[str, dict[str, Any]]


def read_manifest(registry: Registry, which: str) -> Manifest | None:
    """Read and check a manifest; None if there is none of that name.

    Args:
        registry: The repository.
        which: Tag or digest.

    Raises:
        UserError: Its bytes are not those of the digest, it is no image manifest, or a path leads out of the release.
    """
    content = registry.manifest(which, LARGEST)
    if content is None:
        return None
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    name = f"{registry.reference}: {which}"
    if _DIGEST.fullmatch(which) and which != digest:
        raise UserError(f"{name}: the registry sends other bytes, of {digest}; do not use them")
    try:
        table = json.loads(content)
        layers = table["layers"]
        if not isinstance(layers, list):
            raise TypeError("layers")
        found: dict[str, dict[str, Any]] = {}
        for layer in layers:
            path = _path(layer)
            if path is None:
                continue  # an image's, or a folder's: no file of a release
            if not _DIGEST.fullmatch(layer["digest"]) or not isinstance(layer["size"], int) or layer["size"] < 0:
                raise ValueError(f"layer {path}")
            if not _is_inside(path):
                raise UserError(f"{name}: {one_line(path)}: a path that leads out of the release; do not use it")
            if path in found:
                raise UserError(f"{name}: {one_line(path)}: twice in the manifest; not a release")
            found[path] = layer
        return Manifest(digest, str(table.get("artifactType") or ""), found)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{name}: no manifest of an image or an artifact; check the name") from None


def read_small(registry: Registry, layer: dict[str, Any], path: str, largest: int) -> bytes:
    """Return the content of a small file, which is checked.

    Args:
        registry: The repository.
        layer: Descriptor of the file.
        path: Its path, for messages.
        largest: Bytes that it may have.

    Raises:
        UserError: It is larger, cannot be had, or has other bytes.
    """
    if layer["size"] > largest:
        raise UserError(f"{registry.reference}: {path}: {layer['size']} bytes; {largest} is the most that is taken")
    content = b"".join(registry.blob(layer["digest"], 0, layer["size"], path))
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != layer["digest"]:
        raise UserError(f"{registry.reference}: {path}: arrived with other bytes than were published; try again")
    return content


def _path(layer: dict[str, Any]) -> str | None:
    """Return the path of a layer's file; None if it names none."""
    annotations = layer.get("annotations") or {}
    path = annotations.get(FILE_PATH) or annotations.get(TITLE)
    return path if isinstance(path, str) else None


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and "\\" not in path and not path.startswith("/")
    return plain and "/".join(parts) == path and ".." not in parts
