"""Fetch a plan's ranges into ``models/source/<component>``: several at a time, resumable, checked, atomic."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omni.checkpoint import encode_header, parse_header, require_finite
from omni.resources import progress
from omni.resumed import part_of, resumed
from pull import origin, speakers, text
from pull.plan import Plan, Range, companion
from pull.snapshot import Snapshot, read_bytes
from qwen_omni_onnx.common import artifact, locks, output
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.identity import LICENSE, MODEL
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.common.text import TOKENIZER

__all__ = ["COMPANIONS", "already_here", "fetch", "source_facts"]

COMPANIONS = ("config.json", LICENSE)  # small files that travel with the weights, where the checkpoint has them
_TENSORS = "model.safetensors"
_WORKERS = 4
_EXTRA_BYTES = 2**20  # beside the tensors: header, small files


def fetch(snapshot: Snapshot, plan: Plan, folder: Path, speakers_sha256: str | None = None) -> None:
    """Write the component's tensors, configuration, voices and ``source.json``.

    A killed or failed run leaves ``.<component>.part`` behind; the next run of the same plan goes on from there.

    Args:
        snapshot: The checkpoint.
        plan: Plan of the component.
        folder: Folder to write.
        speakers_sha256: SHA-256 that the checkpoint's file of speakers must have; None allows any.

    Raises:
        UserError: The disk has not enough space, another process pulls the same component, something else is in the
            way, a weight is NaN or infinite, the file of speakers is not to be trusted, or the snapshot raises one.
    """
    artifact.require_replaceable(folder, "source", plan.component)
    place = part_of(folder)
    with output.told(folder, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.claimed(place, folder), output.told(folder, place):
        _fetch(snapshot, plan, folder, place, speakers_sha256)


def _fetch(snapshot: Snapshot, plan: Plan, folder: Path, place: Path, speakers_sha256: str | None) -> None:
    voices = _voices(snapshot, plan, speakers_sha256)  # first: they are small, and may be refused
    written = text.files(snapshot) if plan.text else {}
    facts: dict[str, Any] = {**_origin(snapshot, plan), MODEL: origin.find_model(snapshot).record()}
    needed = plan.nbytes + _EXTRA_BYTES - _held_bytes(place / _TENSORS)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(f"{folder}: needs {needed / 1e6:.1f} MB of disk, {free / 1e6:.1f} MB are free")
    header = encode_header(plan.tensors)
    with _partial(snapshot, plan, place) as partial:
        _fetch_ranges(snapshot, plan, partial, len(header))
        with artifact.writing(folder, kind="source", component=plan.component) as beside:
            for name in COMPANIONS:
                content = snapshot.small_file(name)
                if content is not None:
                    (beside / name).write_bytes(content)
            for name in plan.companions:
                (beside / name).write_bytes(companion(snapshot, name))
            for name, content in written.items():
                (beside / name).write_bytes(content)
            if voices is not None:
                facts["speakers_sha256"], content = voices
                (beside / VOICES).write_bytes(content)
            with partial.open("r+b") as file:
                file.write(header)
            os.link(partial, beside / _TENSORS)  # it stays until the artifact is in place: nothing is fetched twice
            try:
                source = source_facts(beside, facts)
            except UserError:
                locks.empty(place)  # wrong bytes, perhaps from a bad line: the next run fetches them again
                raise
            artifact.write_json(beside / "source.json", source)


def already_here(snapshot: Snapshot, plan: Plan, folder: Path, speakers_sha256: str | None = None) -> bool:
    """Return whether a whole earlier pull of the same tensors and speakers at the same commit is in place.

    Args:
        snapshot: The checkpoint.
        plan: Plan of the component.
        folder: Folder of the component's source.
        speakers_sha256: SHA-256 that the file of speakers must have; None allows any.
    """
    if "commit" not in snapshot.describe() or not (folder / artifact.MANIFEST).is_file():
        return False
    try:
        files = artifact.check(folder)["files"]
        source = artifact.read_json(folder / "source.json")
    except UserError:
        return False
    specs = {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in plan.tensors.items()}
    here = {name: {key: entry[key] for key in ("dtype", "shape")} for name, entry in source.pop("tensors").items()}
    recorded, model = source.pop("speakers_sha256", None), source.pop(MODEL, None)
    speak = plan.speakers is None or (recorded is not None and speakers_sha256 in (None, recorded))
    read = not plan.text or TOKENIZER in files
    same = source == _origin(snapshot, plan) and here == specs and speak and read
    return same and model == origin.find_model(snapshot).record()


def _origin(snapshot: Snapshot, plan: Plan) -> dict[str, Any]:
    return {**snapshot.describe(), "renamed": dict(plan.renamed)}


def _voices(snapshot: Snapshot, plan: Plan, pinned: str | None) -> tuple[str, bytes] | None:
    """Return the SHA-256 of the file of speakers, and the converted file; None if the plan has no voices."""
    if plan.speakers is None:
        return None
    content = read_bytes(snapshot, speakers.FILE, 0, plan.speakers.nbytes)
    voices = speakers.read(content, pinned, plan.speakers.widths)
    return hashlib.sha256(content).hexdigest(), speakers.encode(voices)


def source_facts(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``source.json``: where a source came from, and each tensor's SHA-256.

    Args:
        folder: Folder with the tensors, all values of which are checked.
        facts: Facts of the source.

    Raises:
        UserError: A weight is NaN or infinite.
    """
    path = folder / _TENSORS
    content = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = parse_header(file.read(length), content, str(path))
    tensors = {}
    for name, entry in entries.items():
        digest = hashlib.sha256()
        for block in require_finite(path, name, entry):
            digest.update(block)
        tensors[name] = {
            "dtype": entry.spec.dtype,
            "shape": list(entry.spec.shape),
            "sha256": digest.hexdigest(),
        }
    return {**facts, "tensors": tensors}


@contextlib.contextmanager
def _partial(snapshot: Snapshot, plan: Plan, place: Path) -> Iterator[Path]:
    """Yield the file that grows, in a folder that outlives a failure; what another plan left is dropped."""
    versions = {shard: snapshot.version(shard) for shard in {one.shard for one in plan.ranges}}
    tensors = [f"{name} {spec}" for name, spec in plan.tensors.items()]
    ranges = [vars(one) for one in plan.ranges]
    identity = json.dumps([snapshot.describe(), versions, tensors, ranges], sort_keys=True)
    with resumed(place, identity):
        partial = place / _TENSORS
        if not partial.exists():
            partial.touch()
            (place / "done").unlink(missing_ok=True)
        yield partial


def _held_bytes(partial: Path) -> int:
    """Return the disk space that a partial file takes up already; it has holes, so its length is of no use."""
    return partial.stat().st_blocks * 512 if partial.exists() else 0


def _fetch_ranges(snapshot: Snapshot, plan: Plan, partial: Path, data_start: int) -> None:
    """Fill a partial file; ranges that are whole on disk are noted in a file ``done`` beside it."""
    journal = partial.with_name("done")
    done = _noted(journal)
    lock, stopped, lost = threading.Lock(), threading.Event(), False
    waiting = [item for item in plan.ranges if str(item.target) not in done]
    here = plan.nbytes - sum(item.end - item.start for item in waiting)
    with (
        partial.open("r+b") as file,
        journal.open("a") as noted,
        progress("pull", plan.nbytes, in_bytes=True) as advance,
        ThreadPoolExecutor(_WORKERS) as workers,
    ):
        advance(here)

        def run(item: Range) -> None:
            nonlocal lost
            _fetch_range(snapshot, item, file.fileno(), data_start, advance, stopped)
            with lock:
                if lost:
                    return
                lost = (
                    True  # unless all that was written is on the disk: an error is reported once, whatever it concerns
                )
                output.sync(partial)
                lost = False
                noted.write(f"{item.target}\n")
                noted.flush()

        tasks = [workers.submit(run, item) for item in waiting]
        try:
            for task in tasks:
                task.result()
        except BaseException as error:
            if not isinstance(error, Exception):  # a user who stops this does not wait for ranges that take minutes
                stopped.set()
            workers.shutdown(cancel_futures=True)
            raise


def _noted(journal: Path) -> set[str]:
    """Return the lines of a file; a last line that was cut short, as on a full disk, is removed from it."""
    if not journal.exists():
        return set()
    whole, end, _ = journal.read_text().rpartition("\n")
    os.truncate(journal, len(whole + end))
    return set(whole.split())


def _fetch_range(
    snapshot: Snapshot,
    item: Range,
    descriptor: int,
    data_start: int,
    advance: Callable[[int], None],
    stopped: threading.Event,
) -> None:
    shift = data_start + item.target - item.start

    def write(offset: int, block: bytes) -> None:
        if stopped.is_set():
            raise InterruptedError
        rest, place = memoryview(block), offset + shift
        while rest:  # on a full disk, a first piece is written, and the write of the next one fails
            written = os.pwrite(descriptor, rest, place)
            rest, place = rest[written:], place + written
        advance(len(block))

    snapshot.read(item.shard, item.start, item.end, write)
