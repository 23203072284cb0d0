"""A release as one artifact of an OCI registry, in the format of the CNCF's ModelPack, with a layer for each file.

The specification is https://github.com/modelpack/model-spec (docs/spec.md, docs/config.md, specs-go/v1). Nothing here
depends on time or place: the same files give the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from publish.targets import File
from qwen_omni_onnx.registry.manifest import ARTIFACT_TYPE, FILE_PATH, TITLE

__all__ = ["CONFIG_TYPE", "MANIFEST_TYPE", "config", "layer", "manifest"]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_WEIGHTS = (".onnx", ".data", ".npy", ".safetensors")
_DOCUMENTS = ("README.md", "LICENSE", "NOTICE")
_EXAMPLES = "golden"  # folder of inputs and outputs


def layer(path: str, file: File) -> dict[str, Any]:
    """Return the descriptor of a file: a layer that is neither packed nor compressed.

    Args:
        path: Its path in the release.
        file: The file.
    """
    return {
        "mediaType": f"application/vnd.cncf.model.{_kind(PurePosixPath(path))}.v1.raw",
        "digest": f"sha256:{file.sha256}",
        "size": file.nbytes,
        "annotations": {FILE_PATH: path, TITLE: path},
    }


def config(layers: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the description of the model that a manifest refers to.

    Args:
        layers: Descriptors of the files, in order.
    """
    audio_and_text = ["audio", "text"]
    return _as_json(
        {
            "descriptor": {"family": "qwen2.5-omni", "title": "Qwen2.5-Omni's speech path as ONNX"},
            "config": {
                "architecture": "transformer",
                "format": "onnx",
                "capabilities": {"inputTypes": audio_and_text, "outputTypes": audio_and_text},
            },
            "modelfs": {"type": "layers", "diffIds": [one["digest"] for one in layers]},
        }
    )


def manifest(layers: Iterable[Mapping[str, Any]], described: bytes) -> bytes:
    """Return the manifest.

    Args:
        layers: Descriptors of the files, in order.
        described: What :func:`config` has returned for them.
    """
    digest = f"sha256:{hashlib.sha256(described).hexdigest()}"
    return _as_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest, "size": len(described)},
            "layers": list(layers),
        }
    )


def _kind(path: PurePosixPath) -> str:
    if path.parent.name == _EXAMPLES:
        return "dataset"
    if path.name in _DOCUMENTS:
        return "doc"
    return "weight" if path.suffix in _WEIGHTS else "weight.config"


def _as_json(table: dict[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
