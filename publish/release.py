"""Brings published folders out of the house: ``python -m publish --to TARGET``, signed or not.

What goes is what the gate judged: each folder in ``models/published`` is compared with the artifacts and the reports
that are here. Nothing is sent that is there already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni.as_built import as_built
from publish import bom
from publish.evidence import Evidence
from publish.manifest import KIND
from publish.release_card import CARD, Released, listed, render
from publish.sign import Signer, covers
from publish.targets import File, Target
from publish.targets.folder import Folder
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.hub_environment import require_environment
from qwen_omni_onnx.common.hub_name import HubName
from qwen_omni_onnx.trust import digests

__all__ = ["opened", "release", "require_current"]


def opened(name: str) -> Target:
    """Return the target of a name: a folder, ``hf://OWNER/REPO[@REVISION]`` or ``oci://HOST/NAME:TAG``.

    Raises:
        UserError: The name is none.
    """
    kind, separator, _ = name.partition("://")
    if name and not separator:
        return Folder(Path(name))
    if kind == "hf":
        repository = HubName.of(name)
        require_environment()  # huggingface_hub reads it when it is imported
        from publish.targets.hub import Hub

        return Hub(repository)
    if kind == "oci":
        from publish.targets.oci import Repository

        return Repository(name)
    raise UserError(f"--to {name}: give a folder, hf://OWNER/REPO[@REVISION], or oci://HOST/NAME:TAG")


def require_current(evidence: Evidence, folder: Path) -> None:
    """Check every byte of a published folder, and that it was written from this evidence.

    Args:
        evidence: Artifacts and reports of the component: its gate is green.
        folder: The published folder.

    Raises:
        UserError: There is none, it is damaged, or it was written from other artifacts or reports, or by a version that
            stated less of it.
    """
    if not (folder / artifact.MANIFEST).is_file():
        raise UserError(f"{folder}: not there; run python -m publish {evidence.component.name}, or dvc repro")
    manifest = artifact.check(folder)
    stale = UserError(f"{folder}: not what the gate has judged; run python -m publish {evidence.component.name}")
    if manifest.get("kind") != KIND or manifest.get("gates") != _as_json([asdict(v) for v in evidence.gate.verdicts]):
        raise stale
    if not all(as_built(manifest, evidence.folders).values()):
        raise stale
    if bom.FILE not in manifest["files"]:
        raise stale
    bom.require_valid(folder / bom.FILE)


def release(
    folders: Mapping[str, Path], target: Target, signer: Signer | None, *, dry_run: bool, name: str = ""
) -> None:
    """Put published folders where receivers find them, all at once.

    Args:
        folders: Published folder of each component, as :func:`require_current` has found them.
        target: Where they go.
        signer: Who signs; None: nobody.
        dry_run: Whether to print only what would be sent.
        name: Name of the target, which the card of the release says to pull from, unless it is a folder.
    """
    files: dict[str, File] = {}
    for component, folder in folders.items():
        files |= _files(component, folder, target, signer, dry_run=dry_run)
    card = _card(folders, files, target, signer, name).encode()
    files[CARD] = File(card, len(card), hashlib.sha256(card).hexdigest())
    missing = target.missing(files)
    for component, folder in folders.items():
        own = [path for path in files if path.startswith(f"{component}/")]
        sent = [path for path in own if path in missing]
        nbytes, count = (sum(files[path].nbytes for path in paths) for paths in (sent, own))
        print(f"{folder}: {count / 1e6:,.1f} MB in {len(own)} files; {nbytes / 1e6:,.1f} MB in {len(sent)} to be sent")
    if dry_run:
        return
    if missing:
        print(f"published: {target.put(files, list(folders))}")
    else:
        print("up to date: nothing was sent")


def _files(component: str, folder: Path, target: Target, signer: Signer | None, *, dry_run: bool) -> dict[str, File]:
    """Return the files of a folder by their paths in the release, with its signature.

    A signature of the same files that is there already stays, also where nobody signs now.
    """
    manifest = artifact.read_manifest(folder)
    known = digests(folder, manifest)
    prefix = f"{component}/{folder.name}"
    files = {
        f"{prefix}/{name}": File(folder / name, (folder / name).stat().st_size, sha256)
        for name, sha256 in known.items()
    }
    path = f"{prefix}/{artifact.SIGNATURE}"
    there = target.read(path)
    if signer is None:
        if there is None or not covers(there, known):
            return files
    elif there is None or not signer.has_signed(there, known):
        if dry_run:
            return files  # a signature for which nobody waits would be one more entry in a public log
        there = signer.sign(folder.name, known)
    return {**files, path: File(there, len(there), hashlib.sha256(there).hexdigest())}


def _card(
    folders: Mapping[str, Path], files: Mapping[str, File], target: Target, signer: Signer | None, name: str
) -> str:
    """Return the card of the release, with those folders that are there and stay."""
    released = [
        Released(
            artifact.read_manifest(folder),
            signer is not None or f"{component}/{folder.name}/{artifact.SIGNATURE}" in files,
        )
        for component, folder in folders.items()
    ]
    there = (target.read(CARD) or b"").decode(errors="replace")
    for component, path in listed(there).items():
        if component not in folders and (stays := _there(target, path)) is not None:
            released.append(stays)
    return render(released, name if "://" in name else "FOLDER", signer)  # a folder's place means nothing elsewhere


def _there(target: Target, path: str) -> Released | None:
    """Return a folder that was put there earlier; None where no manifest says that it is this one."""
    manifest = target.read(f"{path}/{artifact.MANIFEST}")
    try:
        signed = target.read(f"{path}/{artifact.SIGNATURE}") is not None
        found = Released(json.loads(manifest or b""), signed)
        return found if found.path == path and render([found], "", None) else None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, UserError):
        return None


def _as_json(value: Any) -> Any:
    """Return a value as it is when it was written to JSON and read."""
    return json.loads(json.dumps(value))
