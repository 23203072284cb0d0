"""A synthetic checkpoint, laid out as the hub's, so that a machine without a network can build everything.

It has the same files, the same configuration key for key, and the same tensors in five shards; but the weights are
seeded random numbers, and the tokenizer and the voices are invented. It is stored nowhere: a pull reads it by byte
ranges as it reads the hub, and the bytes are computed then. So what is built from it went through all that real weights
go through.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from components import component, names
from omni.checkpoint import TensorSpec, encode_header
from omni.component import Component, Config
from pull import speakers
from pull.plan import config_of, plan
from pull.shards import INDEX
from pull.synthetic_files import text_files, voices
from pull.synthetic_tensors import other_tensors, tensor_bytes
from pull.write import fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import ALIASES, IGNORED_ALIASES, completed
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import widths_of

__all__ = ["CONFIG", "CONFIGS", "SyntheticSnapshot", "write"]

_HERE = Path(__file__).parent
CONFIGS = {
    "7b": _HERE / "qwen2_5_omni_7b",
    "3b": _HERE / "qwen2_5_omni_3b",
    "tiny": _HERE / "tiny",
    "tiny-3b": _HERE / "tiny_3b",
}
CONFIG = CONFIGS["7b"]
_SHARDS = 5
_SHARE = 5.0 / 22.37  # share of all bytes in each shard but the last: five gigabytes, where transformers cuts
_DEPTHS = (("thinker_config", "vision_config", "depth"),)  # depths of what no component is built from


class SyntheticSnapshot:
    """A synthetic checkpoint; see :class:`pull.snapshot.Snapshot`.

    Args:
        configs: Folder with the checkpoint's configuration files.
        seed: Seed of all weights.
        layers: Number of layers of each stack, from the first; ``full`` for all.
        replaced: Components in place of those of the same name, with other outliers or gains.
    """

    def __init__(self, configs: Path, seed: int, layers: int | str, replaced: Sequence[Component] = ()) -> None:
        self._seed, self._configs = seed, configs
        raw = artifact.read_json(configs / "config.json")
        self._config = raw if layers == "full" else _shallow(raw, int(layers))
        named = {name: component(name) for name in names()} | {one.name: one for one in replaced}
        self._components = [one for one in named.values() if not one.composed_of]
        self._owner: dict[str, Component] = {}
        self._shards = self._laid_out()
        self._headers = {shard: encode_header(specs) for shard, specs in self._shards.items()}

    def describe(self) -> dict[str, Any]:
        """Return the seed, and the model whose shapes the weights have."""
        name = self._config["thinker_config"]["_name_or_path"].partition("/")[0]
        return {"checkpoint": "synthetic", "kind": "synthetic", "seed": self._seed, "shapes_of": name}

    def small_file(self, name: str) -> bytes | None:
        """Return a whole file that is not a shard; None if there is none of that name."""
        if name not in self._files:
            return None
        return self._files[name]()

    def file_bytes(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            UserError: There is no such file.
        """
        if name in self._shards:
            return len(self._headers[name]) + sum(spec.nbytes for spec in self._shards[name].values())
        content = self.small_file(name)
        if content is None:
            raise UserError(f"synthetic: no {name} in it")
        return len(content)

    def version(self, name: str) -> str:
        """Return the seed and the configuration, which all bytes follow from."""
        return f"{self._seed} {json.dumps(self._config, sort_keys=True)}"

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Compute bytes [start, end) of a file and pass them to ``write(offset, block)``, a block at a time."""
        if name not in self._shards:
            write(start, (self.small_file(name) or b"")[start:end])
            return
        header = self._headers[name]
        if start < len(header):
            write(start, header[start:end])
        position = len(header)
        for tensor, spec in self._shards[name].items():
            first, last = max(start, position), min(end, position + spec.nbytes)
            if first < last:
                owner, at = self._owner.get(tensor), first
                for block in tensor_bytes(owner, tensor, spec, self._seed, first - position, last - position):
                    write(at, block)
                    at += len(block)
            position += spec.nbytes

    @cached_property
    def _files(self) -> Mapping[str, Callable[[], bytes]]:
        """Functions that return the files that are not shards, by name."""
        own = {path.name: path.read_bytes for path in self._configs.glob("*.json") if path.name != "config.json"}
        text = {name: partial(bytes, content) for name, content in text_files(self._config).items()}
        return {
            **own,
            **text,
            "config.json": lambda: _json(self._config),
            INDEX: lambda: _json(self._index),
            speakers.FILE: lambda: self._speakers,
        }

    @property
    def _index(self) -> dict[str, Any]:
        weight_map = {tensor: shard for shard, specs in self._shards.items() for tensor in specs}
        total = sum(spec.nbytes for specs in self._shards.values() for spec in specs.values())
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}

    @cached_property
    def _speakers(self) -> bytes:
        """The file of speakers: a pickle in a zip archive, as the checkpoint's own is."""
        import torch  # here alone: only components with voices need it, and it takes seconds

        config = completed(self._config)
        vocabulary = config["thinker_config"]["text_config"]["vocab_size"]
        widths = widths_of(component("token2wav").interface(config))
        table = {
            name: {
                "cond": torch.from_numpy(voice["cond"]),
                "ref_mel": torch.from_numpy(voice["ref_mel"]),
                "bos_token": int(voice["bos_token"][0]),
            }
            for name, voice in voices(widths, self._seed, vocabulary).items()
        }
        written = io.BytesIO()
        torch.save(table, written)
        return written.getvalue()

    def _laid_out(self) -> dict[str, dict[str, TensorSpec]]:
        """Return the tensors of each shard: in the model's order from shard to shard, by name within one."""
        config = completed(self._config)
        specs: dict[str, TensorSpec] = {}
        for owner in self._components:
            found = owner.tensors(config)
            specs |= found
            self._owner |= dict.fromkeys(found, owner)
        specs |= other_tensors(config)
        total, before = sum(spec.nbytes for spec in specs.values()), 0
        shards: dict[str, dict[str, TensorSpec]] = {_shard(number): {} for number in range(_SHARDS)}
        for name in sorted(specs, key=_in_the_model):
            shards[_shard(min(int(before / total / _SHARE), _SHARDS - 1))][name] = specs[name]
            before += specs[name].nbytes
        return {shard: dict(sorted(tensors.items())) for shard, tensors in shards.items()}


def write(target: Component, seed: int, layers: int | str, folder: Path, configs: Path = CONFIG) -> None:
    """Write ``models/source/<component>``, pulled from a synthetic checkpoint.

    Args:
        target: Component whose tensors are written.
        seed: Seed of all weights.
        layers: Number of layers of each stack, from the first; ``full`` for all.
        folder: Folder to write.
        configs: Folder with the checkpoint's configuration files.
    """
    snapshot = SyntheticSnapshot(configs, seed, layers, [target])
    fetch(snapshot, plan(snapshot, target, config_of(snapshot, target)), folder)


def _shallow(raw: Config, layers: int) -> dict[str, Any]:
    """Return the configuration with fewer layers in every stack, under all names that their number has."""
    shallow = copy.deepcopy(completed(raw))
    for path in {*(component(name).depth for name in names()), *_DEPTHS}:
        section, key = ".".join(path[:-1]), path[-1] if path else ""
        table: Any = shallow
        for name in path[:-1]:
            table = table.get(name, {})
        if table.get(key, 0) <= layers:
            continue
        table[key] = layers
        for second, first in {**ALIASES.get(section, {}), **IGNORED_ALIASES.get(section, {})}.items():
            if first == key and second in table:
                table[second] = layers
    for name in names():
        if change := component(name).fewer_layers:
            change(shallow)
    return shallow


def _in_the_model(tensor: str) -> tuple[int, str]:
    order = ("thinker.audio_tower.", "thinker.visual.", "thinker.model.", "thinker.lm_head.", "talker.", "token2wav.")
    return next(number for number, prefix in enumerate(order) if tensor.startswith(prefix)), tensor


def _shard(number: int) -> str:
    return f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors"


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2) + "\n").encode()
