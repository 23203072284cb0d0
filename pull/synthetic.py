"""Seeded weights with the 7B's architecture, so that a machine with no network can build everything.

Weights are drawn from the uniform distribution that PyTorch initializes linear layers with, by integer arithmetic
and exact scaling only: the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omni import artifact
from omni.checkpoint import DTYPES, TensorSpec, encode_header
from omni.component import Component
from omni.resources import progress
from pull.write import source_facts

__all__ = ["CONFIG", "write"]

CONFIG = Path(__file__).with_name("qwen2_5_omni_7b.json")
_BLOCK_VALUES = 4 * 2**20


def write(component: Component, seed: int, folder: Path, config_file: Path = CONFIG) -> None:
    """Write ``models/source/<component>`` as ``pull`` would from a real checkpoint."""
    config = json.loads(config_file.read_text())
    specs = component.tensors(config)
    with (
        artifact.writing(folder, kind="source", component=component.name) as beside,
        (beside / "model.safetensors").open("wb") as file,
        progress("synthesize", sum(spec.nbytes for spec in specs.values()), in_bytes=True) as advance,
    ):
        artifact.write_json(beside / "config.json", config)
        file.write(encode_header(specs))
        for name, spec in specs.items():
            for block in _values(name, spec, seed):
                file.write(block.tobytes())
                advance(block.nbytes)
        file.flush()
        origin = {"checkpoint": "synthetic", "kind": "synthetic", "seed": seed}
        artifact.write_json(beside / "source.json", source_facts(beside, origin))


def _values(name: str, spec: TensorSpec, seed: int) -> Iterator[np.ndarray]:
    """Yield a tensor's values in blocks: uniform within 1/sqrt(fan-in); fan-in is the last axis."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    random = np.random.Philox(key=key)
    bound = 1 / math.sqrt(spec.shape[-1])
    left = math.prod(spec.shape)
    while left:
        count = min(left, _BLOCK_VALUES)
        fraction = (random.random_raw(count) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1  # [-1, 1)
        yield (fraction * bound).astype(DTYPES[spec.dtype])
        left -= count
