"""Which bytes of which shards a component needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from omni.checkpoint import TensorEntry, TensorSpec
from omni.component import Component, Config
from pull import speakers
from pull.layouts import stored_name
from pull.packed import INTEGERS, require_integers
from pull.shards import Shards
from pull.snapshot import Snapshot, exists, read_table, table_of
from pull.unfit import require_floats, require_model, without_weights
from qwen_omni_onnx.common.configuration import completed
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import Widths, widths_of

__all__ = ["Plan", "Range", "Speakers", "companion", "config_of", "plan"]

PART_BYTES = 16 * 2**20  # what one request fetches at most: the unit of parallel and resumed work
_JOINED = {"preprocessor_config.json": ("processor_config.json", "feature_extractor")}  # since transformers 5


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
        component: whose source it becomes.
        tensors: in the order in which they are written.
        ranges: merged, then cut into parts; together exactly the tensors' bytes.
        shards: files that hold them.
        companions: small files that the component needs beside its tensors and ``config.json``.
        renamed: what the checkpoint's names begin with instead of the hub's; see :func:`pull.layouts.renamed`.
        speakers: whose voices the component needs; None if it has none.
        text: whether the component needs the tokenizer and what goes with it.
    """

    component: str
    tensors: dict[str, TensorSpec]
    ranges: tuple[Range, ...]
    shards: frozenset[str]
    companions: tuple[str, ...]
    renamed: Mapping[str, str]
    speakers: Speakers | None = None
    text: bool = False

    @property
    def nbytes(self) -> int:
        return sum(part.end - part.start for part in self.ranges)


def config_of(snapshot: Snapshot, part: Component) -> Config:
    """Read ``config.json``, completed, with the component's other configuration files under their stems.

    Raises:
        UserError: one is missing, not JSON, or of another model; what is there instead is said.
    """
    checkpoint = snapshot.describe()["checkpoint"]
    table = read_table(snapshot, "config.json")
    if table is None:
        raise without_weights(checkpoint, partial(exists, snapshot)) or UserError(
            f"{checkpoint}: no config.json in it; not a checkpoint of Qwen2.5-Omni"
        )
    require_model(checkpoint, table)
    config = completed(table)
    for name in part.companions:
        config[name.removesuffix(".json")] = table_of(checkpoint, name, companion(snapshot, name))
    return config


def companion(snapshot: Snapshot, name: str) -> bytes:
    """Return a configuration file of a component's own, from the file that transformers 5 keeps it in if it must be.

    Raises:
        UserError: there is neither.
    """
    content = snapshot.small_file(name)
    if content is not None:
        return content
    joined, key = _JOINED[name]
    checkpoint = snapshot.describe()["checkpoint"]
    section = (read_table(snapshot, joined) or {}).get(key)
    if not isinstance(section, dict):
        raise UserError(f"{checkpoint}: no {name} in it, nor a {joined} with {key}; take it from the base model")
    return (json.dumps(section, indent=2) + "\n").encode()


def plan(snapshot: Snapshot, part: Component, config: Config) -> Plan:
    """Find the component's tensors in the shards' headers and plan the fewest ranges that cover them.

    Raises:
        UserError: a tensor is missing, has another shape than the configuration says, or holds no floats; an index or
            header that lies; no file of speakers where one is needed, or one that is far too large.
    """
    wanted: Mapping[str, TensorSpec] = part.tensors(config)
    shards = Shards(snapshot)
    changes, wanted = shards.names(wanted, config)
    voices = _speakers(snapshot, part, config)
    found: list[tuple[str, TensorEntry, str]] = []
    for name, spec in wanted.items():
        shard, entry = shards.entry(stored_name(name, changes))
        if entry.spec.shape != spec.shape:
            raise UserError(
                f"{shard}: tensor {name} is {entry.spec}; by config.json it should be of shape {list(spec.shape)}"
            )
        (require_integers if spec.dtype == INTEGERS else require_floats)(shard, name, entry.spec.dtype)
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
    parts = tuple(piece for merged in ranges for piece in _parts(merged))
    tensors = {name: entry.spec for _, entry, name in found}
    files = frozenset(shard for shard, _, _ in found)
    return Plan(part.name, tensors, parts, files, part.companions, changes, voices, part.text)


def _speakers(snapshot: Snapshot, part: Component, config: Config) -> Speakers | None:
    if not part.voices:
        return None
    widths = widths_of(part.interface(config))  # first: it refuses a checkpoint that does not speak
    if not exists(snapshot, speakers.FILE):
        checkpoint = snapshot.describe()["checkpoint"]
        raise UserError(
            f"{checkpoint}: no {speakers.FILE} in it, which tools that merge or save a model leave out; take the base "
            f"model's and set model.speakers in params.yaml to its path, or to the base model's repository"
        )
    found = Speakers(snapshot.file_bytes(speakers.FILE), widths)
    speakers.require_size(found.nbytes)
    return found


def _parts(merged: Range) -> list[Range]:
    return [
        Range(merged.shard, start, min(start + PART_BYTES, merged.end), merged.target + start - merged.start)
        for start in range(merged.start, merged.end, PART_BYTES)
    ]
