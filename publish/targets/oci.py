"""An OCI registry as the target of a release: ``oci://HOST[:PORT]/NAME:TAG``.

Every file is a blob of its own SHA-256, so that nothing is sent twice. The tag moves when all are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from publish.targets import File, modelpack
from publish.targets.upload import has, upload
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.registry.client import Reference, Registry
from qwen_omni_onnx.registry.manifest import ARTIFACT_TYPE, LARGEST, Manifest, read_manifest, read_small

__all__ = ["Repository"]


class Repository:
    """A tag of a repository that releases are put into; see :class:`publish.targets.Target`.

    Args:
        name: ``oci://HOST[:PORT]/NAME:TAG``.

    Raises:
        UserError: The name is none, or has no tag.
    """

    def __init__(self, name: str) -> None:
        reference = Reference.parse(name)
        if reference.tag is None or reference.digest is not None:
            raise UserError(f"--to {name}: a release is put at a tag; give {reference}:TAG")
        self._tag = reference.tag
        self._registry = Registry(reference)
        self._there: set[str] = set()  # digests of blobs
        self._before = self._present()

    def read(self, path: str) -> bytes | None:
        """Return a small file of the release that is there; None if there is none."""
        layer = _layers(self._before).get(path)
        return None if layer is None else read_small(self._registry, layer, path, LARGEST)

    def missing(self, files: Mapping[str, File]) -> list[str]:
        """Return the paths of those files that would be sent: the first one of the same bytes.

        If all bytes are there and yet the release is another one, those that it lacks are returned.
        """
        first: dict[str, str] = {}
        for path, file in files.items():
            first.setdefault(file.sha256, path)
        absent = [path for sha256, path in first.items() if not self._has(f"sha256:{sha256}", path)]
        layers = _layers(self._before)
        return absent or [path for path, file in files.items() if layers.get(path) != modelpack.layer(path, file)]

    def put(self, files: Mapping[str, File], components: Sequence[str]) -> str:
        """Send what is not there, and then move the tag; see :meth:`publish.targets.Target.put`."""
        for path, file in files.items():
            self._send(path, file)
        before = self._before = self._present()  # again: another component may have been published meanwhile
        kept = _layers(before)
        table = {path: layer for path, layer in kept.items() if path not in files and not _is_of(path, components)}
        table |= {path: modelpack.layer(path, file) for path, file in files.items()}
        layers = [table[path] for path in sorted(table)]
        config = modelpack.config(layers)
        self._send("config", File(config, len(config), hashlib.sha256(config).hexdigest()))
        digest = self._tag_manifest(modelpack.manifest(layers, config), before)
        return f"{self._registry.reference}@{digest}"

    def _present(self) -> Manifest | None:
        """Return what the tag is at now, which is a release or nothing."""
        found = read_manifest(self._registry, self._tag)
        if found is not None and found.artifact_type != ARTIFACT_TYPE:
            raise UserError(f"{self._registry.reference}:{self._tag}: holds something else; give another tag")
        return found

    def _send(self, path: str, file: File) -> None:
        digest = f"sha256:{file.sha256}"
        if not self._has(digest, path):
            upload(self._registry, file, path)
            self._there.add(digest)

    def _has(self, digest: str, path: str) -> bool:
        if digest not in self._there and has(self._registry, digest, path):
            self._there.add(digest)
        return digest in self._there

    def _tag_manifest(self, manifest: bytes, before: Manifest | None) -> str:
        """Let the tag be at a manifest; return its digest."""
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        if before is not None and before.digest == digest:
            return digest
        if len(manifest) > LARGEST:
            raise UserError(f"{self._registry.reference}: too many files for one release; publish components apart")
        headers = {"Content-Type": modelpack.MANIFEST_TYPE}
        location = f"manifests/{self._tag}"
        with self._registry.send("PUT", location, self._tag, headers=headers, body=lambda: manifest) as response:
            said = response.headers.get("Docker-Content-Digest", digest)
        if said != digest:
            raise UserError(f"{self._registry.reference}: the registry has changed the manifest; take another")
        return digest


def _is_of(path: str, components: Sequence[str]) -> bool:
    component, separator, _ = path.partition("/")
    return bool(separator) and component in components


def _layers(manifest: Manifest | None) -> dict[str, dict[str, Any]]:
    return manifest.layers if manifest else {}
