"""Downloads what was published: ``qwen-omni-onnx pull SOURCE --to FOLDER``.

What is small comes first: the manifests, and the signatures. Who has signed is asked before gigabytes are fetched, and
every file is compared with the manifest when it has arrived. A folder appears in its place when it is whole; what was
fetched when a download was cut off is not fetched again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_omni_onnx.checked import check_once
from qwen_omni_onnx.common import artifact, locks, output
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import float32_files
from qwen_omni_onnx.common.swap import swap_in
from qwen_omni_onnx.progress import growing
from qwen_omni_onnx.published_manifest import STEM
from qwen_omni_onnx.sources import Source, opened
from qwen_omni_onnx.trust import Trust, require_signed

__all__ = ["Download", "download", "manifests"]

_PUBLISHED = "published"


@dataclass(frozen=True)
class Download:
    """A published folder that is here now.

    Attributes:
        folder: The folder.
        component: Its component.
        fetched: Bytes that were fetched for it; 0 if it was there.
        signed: Whether a signature came with it.
    """

    folder: Path
    component: str
    fetched: int
    signed: bool


@dataclass(frozen=True)
class _Wanted:
    """A folder to fetch: its ``path`` in the release, the ``place`` where it belongs, and what comes first."""

    path: str
    place: Path
    manifest: bytes
    signature: bytes | None


def download(
    name: str,
    to: Path,
    components: Collection[str] | None = None,
    *,
    float32: bool = False,
    trust: Trust | None = None,
) -> Iterator[Download]:
    """Download published folders to ``to/COMPONENT/NAME``, one after another.

    Args:
        name: Where from: a folder, ``hf://OWNER/REPO[@REVISION]``, or ``oci://HOST/NAME[:TAG|@DIGEST]``.
        to: Folder that they are put into; it may hold others.
        components: Components; None takes all that there are.
        float32: Whether float32 graphs that have a quantized form are wanted, too.
        trust: Whom each folder has to be signed by; None does not ask.

    Raises:
        UserError: There is no such release or component; it is not signed by whom it has to be; a file arrived with
            other bytes; the disk is full; or the place holds something else.
    """
    source = opened(name)
    with contextlib.ExitStack() as stack:
        wanted = [
            (one, stack.enter_context(_room(one))) for one in _wanted(source, name, to, components)
        ]  # none is begun before all are known to be wanted
        begun = [(one, room, _begun(one, room, trust)) for one, room in wanted]
        there = {one.path for one, _, _ in begun if _is_there(one, float32)}
        _require_space(to, [(room, _files(found, float32)) for one, room, found in begun if one.path not in there])
        for one, room, manifest in begun:
            fetched = 0
            if one.path not in there:
                fetched = _fetch(source, one, room, _files(manifest, float32))
                swap_in(room, one.place)
                locks.empty(room.parent)  # of what was in its place
            yield Download(one.place, str(manifest["component"]), fetched, one.signature is not None)


def manifests(name: str, to: Path, components: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Download nothing but the manifests of a release, to ``to/COMPONENT/NAME``; return them by component.

    Args:
        name: Where from, as :func:`download` takes it.
        to: An empty folder.
        components: Components; None takes all that there are.

    Raises:
        UserError: There is no such release or component, or a manifest is none.
    """
    found = {}
    for one in _wanted(opened(name), name, to, components):
        one.place.parent.mkdir(parents=True)
        found[one.path.partition("/")[0]] = _begun(one, one.place, None)
    return found


def _wanted(source: Source, name: str, to: Path, components: Collection[str] | None) -> list[_Wanted]:
    """Return the folders of a release that are asked for; nothing but their manifests and signatures is read."""
    paths = source.paths()
    found: dict[str, str] = {}
    for path in paths:
        component, _, rest = path.partition("/")
        folder, _, file = rest.partition("/")
        if file != artifact.MANIFEST or not (STEM.fullmatch(component) and STEM.fullmatch(folder)):
            continue
        if component in found:
            raise UserError(f"{name}: two of {component}: {found[component]} and {component}/{folder}; not a release")
        found[component] = f"{component}/{folder}"
    if not found:
        raise UserError(f"{name}: nothing published there; give what python -m publish --to was given")
    if missing := sorted(set(components or ()) - found.keys()):
        raise UserError(f"{name}: no {', '.join(map(one_line, missing))} in it; there are: {', '.join(sorted(found))}")
    wanted = []
    for component, path in sorted(found.items()):
        if components is None or component in components:
            signature = f"{path}/{artifact.SIGNATURE}"
            signed = source.read(signature) if signature in paths else None
            wanted.append(_Wanted(path, to / path, source.read(f"{path}/{artifact.MANIFEST}"), signed))
    return wanted


@contextlib.contextmanager
def _room(one: _Wanted) -> Iterator[Path]:
    """Yield the folder that a folder is fetched into; it stays if it is cut off."""
    artifact.require_replaceable(one.place, _PUBLISHED, one.path.partition("/")[0])
    room = one.place.with_name(f".{one.place.name}.pulling")
    made = [folder for folder in (room.parent, *room.parent.parents) if not folder.exists()]
    with output.told(one.place, room.parent):
        room.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locks.claimed(room, one.place), output.told(one.place, room):
            try:
                yield room / one.place.name
            finally:
                begun = room / one.place.name
                if {path.name for path in begun.glob("*")} <= {artifact.MANIFEST, artifact.SIGNATURE}:
                    shutil.rmtree(begun, ignore_errors=True)  # nothing that would have to be fetched again
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()  # if nothing came of it


def _begun(one: _Wanted, room: Path, trust: Trust | None) -> dict[str, Any]:
    """Write manifest and signature; return the manifest, which names this folder and is signed by whom it has to be."""
    room.mkdir(exist_ok=True)
    (room / artifact.MANIFEST).write_bytes(one.manifest)
    (room / artifact.SIGNATURE).unlink(missing_ok=True)
    if one.signature is not None:
        (room / artifact.SIGNATURE).write_bytes(one.signature)
    manifest = artifact.read_manifest(room)
    component, _, name = one.path.partition("/")
    if (manifest.get("kind"), manifest.get("component"), manifest.get("name")) != (_PUBLISHED, component, name):
        raise UserError(f"{one.path}: its manifest is that of another folder; do not use it")
    if trust is not None:
        require_signed(room, manifest, trust, one.path)
    return manifest


def _files(manifest: dict[str, Any], float32: bool) -> dict[str, dict[str, Any]]:
    left = set() if float32 else float32_files(manifest)
    return {name: entry for name, entry in manifest["files"].items() if name not in left}


def _is_there(one: _Wanted, float32: bool) -> bool:
    """Return whether the same folder is in its place, every byte as published, with what is wanted."""
    manifest = one.place / artifact.MANIFEST
    signature = one.place / artifact.SIGNATURE
    if not manifest.is_file() or manifest.read_bytes() != one.manifest:
        return False
    if (signature.read_bytes() if signature.is_file() else None) != one.signature:
        return False
    listed = _files(artifact.read_manifest(one.place), float32)
    try:
        check_once(one.place)
    except UserError:
        return False
    return all((one.place / name).is_file() for name in listed)


def _require_space(to: Path, todo: list[tuple[Path, dict[str, dict[str, Any]]]]) -> None:
    """Refuse to begin what does not fit on the disk.

    Raises:
        UserError: It does not fit.
    """
    needed = 0
    for room, files in todo:
        for name, entry in files.items():
            needed += max(0, entry["bytes"] - _size(room / name))
    free = shutil.disk_usage(to).free
    if needed > free:
        raise UserError(f"{to}: {needed / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free; make space")


def _fetch(source: Source, one: _Wanted, room: Path, files: dict[str, dict[str, Any]]) -> int:
    """Fetch the files that are not there whole; return how many bytes that were."""
    fetched = 0
    for extra in sorted(path for path in room.rglob("*") if path.is_file()):
        name = extra.relative_to(room).as_posix()
        if name not in files and name not in (artifact.MANIFEST, artifact.SIGNATURE):
            extra.unlink()  # of another release
    for name, entry in files.items():
        place = room / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if _size(place) > entry["bytes"]:
            place.unlink()
        begun = _size(place)
        if begun < entry["bytes"] or not place.is_file():
            with growing(place, entry["bytes"], f"{one.path}/{name}"):
                source.fetch(f"{one.path}/{name}", place, entry["bytes"])
            fetched += _size(place) - begun
        if _size(place) < entry["bytes"]:
            raise UserError(
                f"{one.path}/{name}: only {_size(place)} of {entry['bytes']} bytes came; pull again to go on"
            )
        if artifact.sha256(place) != entry["sha256"]:
            place.unlink()
            raise UserError(f"{one.path}/{name}: arrived with other bytes than were published; pull again")
        place.chmod(0o644)
        output.sync(place)
    return fetched


def _size(place: Path) -> int:
    return place.stat().st_size if place.is_file() else 0
