"""An artifact: a folder that one stage hands to the next, whole or not at all.

A folder is written beside its final place and swapped in at the end, together with a ``manifest.json`` that names
every file with its size and SHA-256. ``check`` accepts a folder only if all of that is true, so a kill at any moment
leaves the old artifact, the new one, or something that no later stage accepts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common import locks, output
from qwen_omni_onnx.common.errors import UserError, undisturbed
from qwen_omni_onnx.common.swap import swap_in

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "check",
    "fingerprint",
    "read_json",
    "read_manifest",
    "require_replaceable",
    "sha256",
    "unlisted",
    "write_json",
    "writing",
]

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # beside the manifest, by whoever publishes: over every other file, the manifest among them
_MEND = {"published": "download the folder again, or publish it again"}  # by kind; others are built here
# By the hub and its client; by git; by macOS, which adds ._NAME to every NAME on other file systems; by Windows.
_PUT_BESIDE = (".cache", ".gitattributes", ".git", ".gitignore", ".DS_Store", "Thumbs.db", "desktop.ini")
_HISTORY = ".git"  # put beside by a user, who would miss it


@contextlib.contextmanager
def writing(folder: Path, **facts: Any) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, seal it with a manifest and put it in place of ``folder``.

    Args:
        folder: Place where the artifact belongs. An artifact that is there already stays until the new one is whole.
        facts: Entries of the manifest beside its list of files; they must not depend on time or place, so that the same
            inputs give the same bytes. The body may go on filling a list or table among them.

    If the body raises, nothing changes. What a killed run left behind is swept up by the next one.

    Raises:
        UserError: Something is in the way (see :func:`require_replaceable`), another process writes the same artifact,
            the disk is full, or the body made a link.
    """
    place = folder.resolve()  # a link to a folder on another disk stays a link
    kind, component = facts.get("kind"), facts.get("component")
    require_replaceable(folder, kind, component)
    room = place.with_name(f".{place.name}.writing")
    with output.told(folder, place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
    with locks.claimed(room, folder), output.told(folder, room):
        try:
            locks.empty(room)
            beside = Path(tempfile.mkdtemp(dir=room))  # without locks, two processes would fill one folder
            beside.chmod(0o755)
            yield beside
            _seal(beside, facts)
            require_replaceable(place, kind, component)  # still: nothing that was put there meanwhile goes
            swap_in(beside, place)
        finally:
            with contextlib.suppress(OSError), undisturbed():
                locks.empty(room)


def require_replaceable(folder: Path, kind: object, component: object = None) -> None:
    """Refuse to write over anything but an earlier artifact of the same kind: a mistyped ``--out`` costs nobody files.

    Args:
        folder: Place where an artifact is to be written.
        kind: Kind that its manifest will say that it is.
        component: Component that it will say that it is of.

    Raises:
        UserError: A file is there, a folder that holds something else, or an artifact with a file that its manifest
            does not list; or the place is inside another artifact.
    """
    for around in folder.resolve().parents:
        if around.exists() and not around.is_dir():
            raise UserError(f"{folder}: {around} is a file, and not a folder to write into; write elsewhere")
        if _is_artifact(around):
            raise UserError(f"{folder}: lies in an artifact, {around}, which would not be whole then; write elsewhere")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: in the way, and no artifact (no {MANIFEST}); move it, or write elsewhere")
    manifest = read_manifest(folder)
    found = [manifest.get("kind"), manifest.get("component")]
    if found != [kind, component]:
        said = " of ".join(repr(str(fact)[:40]) for fact in found if fact is not None)
        raise UserError(f"{folder}: in the way: it holds another artifact ({said}); move it, or write elsewhere")
    if extra := unlisted(folder, manifest):
        raise UserError(f"{folder}: {extra[0]!r} is not of the artifact, and would be lost with it; move it")


def check(folder: Path, trusted: Container[str] = (), optional: Container[str] = ()) -> dict[str, Any]:
    """Return the manifest of a whole artifact.

    Args:
        folder: Folder of the artifact.
        trusted: Names of files whose bytes are known to be the manifest's, and are not read again.
        optional: Names of files that may be missing.

    What the hub's client and operating systems put beside a download (``.cache``, ``.gitattributes``, ``.DS_Store``) is
    not looked at; nor is a signature.

    Raises:
        UserError: There is no artifact there, or a file is missing, extra, no plain file, of another size, or of
            another SHA-256; or the manifest is not to be trusted (see :func:`read_manifest`).
    """
    manifest = read_manifest(folder)
    listed = manifest["files"]
    mend = _MEND.get(str(manifest.get("kind")), "build the artifact again")
    present = _plain_files(folder, listed)
    for name in present:
        if name not in listed:
            raise UserError(f"{folder}: {name!r} is not in the manifest; {mend}")
    for name, entry in listed.items():
        path = folder / name
        if name not in present and name in optional:
            continue
        if name not in present:
            raise UserError(f"{path}: missing; {mend}")
        if path.stat().st_size != entry["bytes"]:
            raise UserError(f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}; {mend}")
    read = [name for name in listed if name in present and name not in trusted]
    for name, found in zip(read, _hashes([folder / name for name in read]), strict=True):
        if found != listed[name]["sha256"]:
            raise UserError(f"{folder / name}: its SHA-256 is not the manifest's; {mend}")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest without looking at the files it lists.

    Raises:
        UserError: There is no manifest, it cannot be read, it names a file outside the folder, or an entry of its table
            is not size and SHA-256.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no artifact here (no {MANIFEST}); run the stage that makes it, or dvc repro")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UserError(f"{path}: not a manifest (no table of files); build the artifact again")
    for name, entry in manifest["files"].items():
        # Published folders come from strangers: nobody is to open what such a name leads to.
        if not _is_inside(name):
            raise UserError(f"{path}: names {name!r}, which is no file in this folder; do not use it")
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or type(entry.get("sha256")) is not str:
            raise UserError(f"{path}: does not give bytes and sha256 of {name!r}; build the artifact again")
    return manifest


def fingerprint(folder: Path) -> str:
    """SHA-256 of an artifact's manifest, which covers every byte of the artifact."""
    read_manifest(folder)
    return sha256(folder / MANIFEST)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(paths: list[Path]) -> list[str]:
    """SHA-256 of files, several at a time: Python lets other threads run meanwhile."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(sha256, paths))


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: The file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that writes it, or dvc repro") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, beside its place and renamed.

    NaN becomes null, which JSON has instead, and dataclasses become objects.

    Raises:
        UserError: The file cannot be written.
    """
    text = json.dumps(_nan_to_null(value), indent=2, sort_keys=True, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with output.writing(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.chmod(0o644)


def _nan_to_null(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_null(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def unlisted(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Names of what is in an artifact's folder beside the artifact: a user's, for whom it is kept.

    What the hub's client and operating systems put there is left out; a user's Git repository is not.
    """
    listed = manifest["files"]
    files = (name for name, path in _below(folder, listed) if not path.is_dir() or path.is_symlink())
    history = [_HISTORY] if (folder / _HISTORY).exists() else []
    return history + sorted(name for name in files if name not in listed and name != MANIFEST)


def _plain_files(folder: Path, listed: Container[str] | None = None) -> dict[str, Path]:
    """Return every file below a folder, but for its manifest, by the name that the manifest gives it.

    Args:
        folder: Folder of the artifact.
        listed: Names, as :func:`_below` takes them.

    Raises:
        UserError: Something there is neither a plain file nor a folder. What a link leads to can lie anywhere and
            change after it was looked at; reading a pipe waits for ever.
    """
    found = {}
    for name, path in _below(folder, listed):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{folder}: {name!r} is a link or a special file; an artifact holds plain files only")
        if path.is_file() and name != MANIFEST:
            found[name] = path
    return dict(sorted(found.items()))


def _below(folder: Path, listed: Container[str] | None) -> Iterator[tuple[str, Path]]:
    """Yield everything below a folder, by the name that the manifest gives it.

    Args:
        folder: Folder of the artifact.
        listed: Names in its manifest, where it has one; of others, those that are known to be put beside are left out.
    """
    for place, folders, files in os.walk(folder):
        for own in sorted([*folders, *files]):
            path = Path(place, own)
            name = path.relative_to(folder).as_posix()
            if listed is not None and name not in listed and (_is_put_beside(own) or name == SIGNATURE):
                if own in folders:
                    folders.remove(own)  # and nothing in it is looked at
            else:
                yield name, path


def _is_artifact(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():  # as of many a web page
        return False
    try:
        return "kind" in read_manifest(folder)
    except UserError:
        return False


def _is_put_beside(name: str) -> bool:
    return name in _PUT_BESIDE or name.startswith("._")


def _is_inside(name: str) -> bool:
    """Whether a name is a plain relative path, on every system, and not that of the manifest itself."""
    parts = name.split("/")
    plain = name.isprintable() and not {"", ".", ".."} & set(parts) and not set("\\:") & set(name)
    return plain and name not in (MANIFEST, SIGNATURE)


def _seal(folder: Path, facts: Mapping[str, Any]) -> None:
    present = _plain_files(folder)
    for path in present.values():
        path.chmod(0o644)
        output.sync(path)
    hashes = _hashes(list(present.values()))
    files = {
        name: {"bytes": path.stat().st_size, "sha256": found}
        for (name, path), found in zip(present.items(), hashes, strict=True)
    }
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    write_json(folder / MANIFEST, {**facts, "files": files})
