"""Find tensors in a checkpoint's safetensors files: in which file, at which bytes, and under which name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from components import component
from omni.checkpoint import HEADER_LENGTH_BYTES, TensorEntry, TensorSpec, header_length, parse_header
from omni.component import Config
from pull.layouts import renamed, stored_name, with_packed
from pull.snapshot import Snapshot, exists, read_bytes, read_table
from pull.unsupported import missing_tensors, without_weights
from qwen_omni_onnx.common.errors import UserError

__all__ = ["INDEX", "SINGLE", "Shards"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PLAIN_NAME = re.compile(r"[\w.-]+\.safetensors")


class Shards:
    """The files of one snapshot; each header is read once, when it is needed.

    Args:
        snapshot: The checkpoint.

    Raises:
        UserError: The index is not a table of tensors.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._headers: dict[str, dict[str, TensorEntry]] = {}
        index = read_table(snapshot, INDEX)
        self._where = SINGLE if index is None else INDEX
        if index is not None:
            weight_map = index.get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{INDEX}: no weight_map in it")
            self._map: Mapping[str, Any] = weight_map
        else:
            self._map = {}

    def names(
        self, wanted: Mapping[str, TensorSpec], config: Config
    ) -> tuple[dict[str, str], Mapping[str, TensorSpec]]:
        """Return the prefixes that names have in this checkpoint, and the tensors that it has for the wanted ones.

        See :func:`pull.layouts.renamed` and :func:`pull.layouts.with_packed`.

        Args:
            wanted: Tensors by their names on the hub.
            config: Configuration of the checkpoint.

        Raises:
            UserError: Not all of them are there, or the index gives one a file that is not a shard.
        """
        if not wanted:
            return {}, {}
        if self._where == SINGLE:
            self._require_single()
            self._map = dict.fromkeys(self._header(SINGLE), SINGLE)
        changes, wanted = self._here(wanted, config)
        missing = self._missing(wanted, changes)
        if missing:
            raise missing_tensors(self._where, wanted, missing, partial(self._holds, config))
        for shard in (self._map[stored_name(name, changes)] for name in wanted):
            if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
                raise UserError(f"{INDEX}: {shard!r} is not the name of a shard")
        return changes, wanted

    def entry(self, tensor: str) -> tuple[str, TensorEntry]:
        """Return the file that holds a tensor, and its entry in there.

        Raises:
            UserError: The index names a shard that has no such tensor.
        """
        shard = self._map[tensor]
        header = self._header(shard)
        if tensor not in header:
            raise UserError(f"{shard}: tensor {tensor} is missing; the checkpoint is not whole")
        return shard, header[tensor]

    def _require_single(self) -> None:
        if exists(self._snapshot, SINGLE):
            return
        checkpoint = self._snapshot.describe()["checkpoint"]
        raise without_weights(checkpoint, partial(exists, self._snapshot)) or UserError(
            f"{checkpoint}: no {INDEX} and no {SINGLE} in it; the snapshot is not whole"
        )

    def _here(
        self, wanted: Mapping[str, TensorSpec], config: Config
    ) -> tuple[dict[str, str], Mapping[str, TensorSpec]]:
        changes = renamed(wanted, self._map)
        return changes, with_packed(wanted, lambda name: stored_name(name, changes) in self._map, config)

    def _missing(self, wanted: Mapping[str, TensorSpec], changes: Mapping[str, str]) -> list[str]:
        return [name for name in wanted if stored_name(name, changes) not in self._map]

    def _holds(self, config: Config, name: str) -> bool:
        """Whether the checkpoint has all tensors of a component."""
        try:
            changes, wanted = self._here(component(name).tensors(config), config)
        except UserError:
            return False
        return not self._missing(wanted, changes)

    def _header(self, shard: str) -> dict[str, TensorEntry]:
        if shard not in self._headers:
            size = self._snapshot.file_bytes(shard)
            first = read_bytes(self._snapshot, shard, 0, min(HEADER_LENGTH_BYTES, size))
            length = header_length(first, size, shard)
            header = read_bytes(self._snapshot, shard, HEADER_LENGTH_BYTES, HEADER_LENGTH_BYTES + length)
            self._headers[shard] = parse_header(header, size, shard)
        return self._headers[shard]
