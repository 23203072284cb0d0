"""Plan the byte ranges of the shards that a component needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from omni.checkpoint import TensorEntry, TensorSpec
from omni.component import Component, Config
from pull import speakers
from pull.layouts import INTEGERS, stored_name
from pull.shards import Shards
from pull.snapshot import Snapshot, exists, read_table, table_of
from pull.unsupported import require_floats, require_integers, require_model, without_weights
from qwen_omni_onnx.common.configuration import completed, table_at
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import Widths, widths_of

__all__ = ["Plan", "Range", "Speakers", "companion", "config_of", "plan"]

PART_BYTES = 16 * 2**20  # most bytes of one request, the unit of parallel and resumed work
_MERGED = {"preprocessor_config.json": ("processor_config.json", "feature_extractor")}  # since transformers 5
_MOST_LAYERS = 1_000


@dataclass(frozen=True)
class Range:
    """Bytes [start, end) of a shard, which one request fetches.

    Attributes:
        shard: Name of the file.
        start: First byte.
        end: One past the last byte.
        target: Position of the first byte in the tensors that are written one after another.
    """

    shard: str
    start: int
    end: int
    target: int


@dataclass(frozen=True)
class Speakers:
    """The checkpoint's file of speakers.

    Attributes:
        nbytes: Size of the file.
        widths: Widths of its voices by ``config.json``.
    """

    nbytes: int
    widths: Widths


@dataclass(frozen=True)
class Plan:
    """What has to be fetched for a component.

    Attributes:
        component: Name of the component.
        tensors: Tensors by their names on the hub, in the order in which they are written.
        ranges: Ranges that hold exactly the tensors' bytes: adjacent ones are merged, and long ones are cut.
        shards: Files that hold them.
        companions: Small files that the component needs beside its tensors and ``config.json``.
        renamed: Prefixes of the checkpoint's names by those on the hub; see :func:`pull.layouts.renamed`.
        speakers: File of speakers; None if the component has no voices.
        text: Whether the component needs the tokenizer and the chat template.
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
        """Number of bytes of all tensors."""
        return sum(one.end - one.start for one in self.ranges)


def config_of(snapshot: Snapshot, component: Component) -> Config:
    """Read ``config.json``, completed, with the component's other configuration files under their stems.

    Args:
        snapshot: The checkpoint.
        component: The component.

    Raises:
        UserError: One is missing, not JSON, or of another model.
    """
    checkpoint = snapshot.describe()["checkpoint"]
    table = read_table(snapshot, "config.json")
    if table is None:
        raise without_weights(checkpoint, partial(exists, snapshot)) or UserError(
            f"{checkpoint}: no config.json in it; not a checkpoint of Qwen2.5-Omni"
        )
    require_model(checkpoint, table)
    config = completed(table)
    for name in component.companions:
        config[name.removesuffix(".json")] = table_of(checkpoint, name, companion(snapshot, name))
    _require_depth(config, component)
    return config


def _require_depth(config: Config, component: Component) -> None:
    """Refuse more layers than any model has: the tensors of each are listed, before one is looked for."""
    try:
        layers = table_at(config, ".".join(component.depth)) if component.depth else 0
    except (KeyError, TypeError):
        return  # told by the component, which has more to say
    if isinstance(layers, int | float) and layers > _MOST_LAYERS:
        raise UserError(f"config.json: {'.'.join(component.depth)} is {layers!r:.40}; no model has so many layers")


def companion(snapshot: Snapshot, name: str) -> bytes:
    """Return a configuration file of a component, from the file into which transformers 5 merges it if need be.

    Args:
        snapshot: The checkpoint.
        name: Name of the file.

    Raises:
        UserError: There is neither file.
    """
    content = snapshot.small_file(name)
    if content is not None:
        return content
    merged, key = _MERGED[name]
    checkpoint = snapshot.describe()["checkpoint"]
    section = (read_table(snapshot, merged) or {}).get(key)
    if not isinstance(section, dict):
        raise UserError(f"{checkpoint}: no {name} in it, nor a {merged} with {key}; take it from the base model")
    return (json.dumps(section, indent=2) + "\n").encode()


def plan(snapshot: Snapshot, component: Component, config: Config) -> Plan:
    """Find the component's tensors in the shards' headers and plan the fewest ranges that cover them.

    Args:
        snapshot: The checkpoint.
        component: The component.
        config: Configuration that :func:`config_of` returned.

    Raises:
        UserError: A tensor is missing, has another shape than by the configuration, or does not hold floats; an index
            or header is wrong; the file of speakers is missing where one is needed, or is far too large.
    """
    wanted: Mapping[str, TensorSpec] = component.tensors(config)
    shards = Shards(snapshot)
    changes, wanted = shards.names(wanted, config)
    voices = _speakers(snapshot, component, config)
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
    requests = tuple(request for merged in ranges for request in _cut(merged))
    tensors = {name: entry.spec for _, entry, name in found}
    files = frozenset(shard for shard, _, _ in found)
    return Plan(component.name, tensors, requests, files, component.companions, changes, voices, component.text)


def _speakers(snapshot: Snapshot, component: Component, config: Config) -> Speakers | None:
    if not component.voices:
        return None
    widths = widths_of(component.interface(config))  # first: it refuses a checkpoint that does not speak
    if not exists(snapshot, speakers.FILE):
        checkpoint = snapshot.describe()["checkpoint"]
        raise UserError(
            f"{checkpoint}: no {speakers.FILE} in it, which tools that merge or save a model leave out; take the base "
            f"model's and set model.speakers in params.yaml to its path, or to the base model's repository"
        )
    found = Speakers(snapshot.file_bytes(speakers.FILE), widths)
    speakers.require_size(found.nbytes)
    return found


def _cut(merged: Range) -> list[Range]:
    return [
        Range(merged.shard, start, min(start + PART_BYTES, merged.end), merged.target + start - merged.start)
        for start in range(merged.start, merged.end, PART_BYTES)
    ]
