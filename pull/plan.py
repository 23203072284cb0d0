"""Which bytes of which shards a component needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from omni.checkpoint import HEADER_LENGTH_BYTES, TensorEntry, TensorSpec, header_length, parse_header
from omni.component import Component, Config
from omni.errors import Problem
from omni.voices import Widths, widths_of
from pull import speakers

__all__ = ["Plan", "Range", "Snapshot", "Speakers", "config_of", "plan", "read_bytes", "table_of"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PART_BYTES = 16 * 2**20  # what one request fetches at most: the unit of parallel and resumed work
_PLAIN_NAME = re.compile(r"[\w.-]+\.safetensors")


class Snapshot(Protocol):
    """A checkpoint at one commit: a repository on a hub, or a folder."""

    def describe(self) -> dict[str, str]:
        """Where it comes from, for ``source.json``."""

    def small_file(self, name: str) -> bytes | None:
        """A whole file, or None where the checkpoint has none of that name."""

    def file_bytes(self, name: str) -> int:
        """Size of a file in bytes; a file that is not there is a mistake of the user's."""

    def version(self, name: str) -> str:
        """Text that is another one when a shard's bytes are: what was fetched of the old ones is of no use then."""

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Pass bytes [start, end) of a file to ``write(offset, block)`` as they come."""


@dataclass(frozen=True)
class Range:
    """Bytes [start, end) of a shard, and their place in the tensors that are written one after another."""

    shard: str
    start: int
    end: int
    target: int


@dataclass(frozen=True)
class Speakers:
    """The checkpoint's file of speakers: its size, and what ``config.json`` says of the voices in it."""

    nbytes: int
    widths: Widths


@dataclass(frozen=True)
class Plan:
    """What has to be fetched.

    Attributes:
        tensors: in the order in which they are written.
        ranges: merged, then cut into parts; together exactly the tensors' bytes.
        shards: number of shards touched.
        companions: small files that the component needs beside its tensors and ``config.json``.
        speakers: whose voices the component needs; None if it has none.
        text: whether the component needs the tokenizer and what goes with it.
    """

    tensors: dict[str, TensorSpec]
    ranges: tuple[Range, ...]
    shards: int
    companions: tuple[str, ...]
    speakers: Speakers | None = None
    text: bool = False

    @property
    def nbytes(self) -> int:
        return sum(part.end - part.start for part in self.ranges)


def config_of(snapshot: Snapshot, component: Component) -> Config:
    """Read ``config.json``, with the component's other configuration files under their stems.

    Raises:
        Problem: one is missing (so this is no checkpoint, or not a whole one), or not JSON.
    """
    found = {}
    for name in ("config.json", *component.companions):
        table = _json(snapshot, name)
        if table is None:
            checkpoint = snapshot.describe()["checkpoint"]
            raise Problem(f"{checkpoint}: no {name} in it; not a checkpoint of Qwen2.5-Omni")
        found[name.removesuffix(".json")] = table
    return {**found.pop("config"), **found}


def plan(snapshot: Snapshot, component: Component, config: Config) -> Plan:
    """Find the component's tensors in the shards' headers and plan the fewest ranges that cover them.

    Raises:
        Problem: a tensor is missing, or has another shape or dtype than the configuration says; an index or
            header that lies; no file of speakers where one is needed, or one that is far too large.
    """
    wanted = component.tensors(config)
    voices = _speakers(snapshot, component, config)
    shard_of = _shards(snapshot, wanted)
    headers = {shard: _header(snapshot, shard) for shard in sorted(set(shard_of.values()))}
    found: list[tuple[str, TensorEntry, str]] = []
    for name, shard in shard_of.items():
        if name not in headers[shard]:
            raise Problem(f"{shard}: tensor {name} is missing; the checkpoint is not whole")
        entry = headers[shard][name]
        if entry.spec != wanted[name]:
            raise Problem(f"{shard}: tensor {name} is {entry.spec}; by config.json it should be {wanted[name]}")
        found.append((shard, entry, name))
    found.sort(key=lambda item: (item[0], item[1].start))
    ranges: list[Range] = []
    target = 0
    for shard, entry, _ in found:
        if ranges and ranges[-1].shard == shard and ranges[-1].end == entry.start:
            ranges[-1] = Range(shard, ranges[-1].start, entry.end, ranges[-1].target)
        else:
            ranges.append(Range(shard, entry.start, entry.end, target))
        target += entry.spec.nbytes
    parts = tuple(part for merged in ranges for part in _parts(merged))
    tensors = {name: entry.spec for _, entry, name in found}
    return Plan(tensors, parts, len(headers), component.companions, voices, component.text)


def read_bytes(snapshot: Snapshot, name: str, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file."""
    blocks: list[bytes] = []
    snapshot.read(name, start, end, lambda offset, block: blocks.append(block))
    return b"".join(blocks)


def table_of(checkpoint: str, name: str, content: bytes) -> dict:
    """Parse a file of JSON.

    Raises:
        Problem: it is none, or no object.
    """
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{checkpoint}: {name} is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise Problem(f"{checkpoint}: {name} is not a JSON object")
    return table


def _speakers(snapshot: Snapshot, component: Component, config: Config) -> Speakers | None:
    if not component.voices:
        return None
    found = Speakers(snapshot.file_bytes(speakers.FILE), widths_of(component.interface(config)))
    speakers.require_size(found.nbytes)
    return found


def _shards(snapshot: Snapshot, wanted: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Name the shard that holds each wanted tensor."""
    index = _json(snapshot, INDEX)
    if index is None:
        return dict.fromkeys(wanted, SINGLE)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise Problem(f"{INDEX}: no weight_map in it")
    missing = sorted(set(wanted) - set(weight_map))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Problem(f"{INDEX}: tensor {missing[0]}{more} is missing; this checkpoint has not what is needed")
    for name in wanted:
        shard = weight_map[name]
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            raise Problem(f"{INDEX}: {shard!r} is not the name of a shard")
    return {name: weight_map[name] for name in wanted}


def _header(snapshot: Snapshot, shard: str) -> dict[str, TensorEntry]:
    size = snapshot.file_bytes(shard)
    first = read_bytes(snapshot, shard, 0, min(HEADER_LENGTH_BYTES, size))
    length = header_length(first, size, shard)
    header = read_bytes(snapshot, shard, HEADER_LENGTH_BYTES, HEADER_LENGTH_BYTES + length)
    return parse_header(header, size, shard)


def _parts(merged: Range) -> list[Range]:
    return [
        Range(merged.shard, start, min(start + PART_BYTES, merged.end), merged.target + start - merged.start)
        for start in range(merged.start, merged.end, PART_BYTES)
    ]


def _json(snapshot: Snapshot, name: str) -> dict | None:
    content = snapshot.small_file(name)
    return None if content is None else table_of(snapshot.describe()["checkpoint"], name, content)
