"""What is compared: a decoder with synthetic weights in a folder of its own, in several schemes, and what it is fed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from components import component, talker, thinker
from export.decoder import FLOAT32 as IN_FLOAT32
from export.decoder import Schemes
from omni.checkpoint import Checkpoint
from omni.component import Component
from omni.decoder import Decoder, DecoderSizes
from pull import synthetic
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "FLOAT32",
    "INT4",
    "INT4_LARGE",
    "INT8",
    "LONGER",
    "TOKENS",
    "Bench",
    "depth",
    "described",
    "require_possible",
    "synthesize",
]

FLOAT32, INT8, INT4 = "ours float32", "ours int8-block", "ours int4-block"
INT4_LARGE = "ours int4-block, 128"  # weights of a scale, where the others have 32
NAMES = ("talker", "thinker")
CONFIGS = synthetic.CONFIG
TOKENS = 200  # that accuracy is judged on
LONGER = 10  # times the past: where a copy of the cache would show
_SEED = 0
_BYTES_A_WEIGHT = 2 * 4  # PyTorch and our float32 graph take turns
_BESIDE = 3 * 2**30  # bytes, of both: cache, inner tensors, libraries


@dataclass(frozen=True)
class Bench:
    """What every way to run a decoder is made from.

    Attributes:
        name: of the component.
        decoder: where it stands in the checkpoint.
        folder: with the checkpoint, as ``models/source/<name>``, and with the graphs.
        threads: of each session; 0: ONNX Runtime's choice.
        cores: the same for those that want a number.
        past: tokens of the prompt, after which a step is taken.
    """

    name: str
    decoder: Decoder
    folder: Path
    threads: int
    cores: int
    past: int

    @property
    def source(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / "models/source" / self.name

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.source)

    @cached_property
    def size(self) -> DecoderSizes:
        return self.decoder.sizes(self.checkpoint.config)

    @cached_property
    def schemes(self) -> dict[str, Schemes]:
        """How each of our graphs stores its matrices, by the graph's name; the float32 one comes first.

        At 4 bits, head and projection stay in 8: a hundredth of the Talker's weights, and 3 dB.
        """
        spared = {f"{layer}*": "int8-block" for layer in (self.decoder.head, self.decoder.projection) if layer}
        return {
            FLOAT32: IN_FLOAT32,
            INT8: Schemes("int8-block"),
            INT4: Schemes("int4-block", nodes=spared),
            INT4_LARGE: Schemes("int4-block", 128, nodes=spared),
        }

    @property
    def quantized(self) -> list[str]:
        """Names of our graphs but the float32 one."""
        return [name for name in self.schemes if name != FLOAT32]

    def graph(self, name: str) -> Path:
        """Return the file of one of our graphs."""
        schemes = self.schemes[name]
        return self.folder / f"{schemes.default}-{schemes.block}" / f"{self.decoder.graph}.onnx"

    @cached_property
    def rows(self) -> np.ndarray:
        """What all ways are fed, as many of them as any needs: random embeddings [tokens, width] float32."""
        count = max(LONGER * self.past + 1, TOKENS)
        return np.random.default_rng(0).standard_normal((count, self.size.embedding), np.float32)


def described(name: str) -> tuple[Component, Decoder]:
    """Return the description of a component, and where it stands in the checkpoint.

    Raises:
        UserError: it is no decoder.
    """
    if name not in NAMES:
        raise UserError(f"--component: {name!r} is not allowed: give {' or '.join(NAMES)}")
    return component(name), {"talker": talker.DECODER, "thinker": thinker.DECODER}[name]


def depth(name: str) -> int:
    """Return how many layers a decoder has, in full."""
    return described(name)[1].sizes(_config()).layers


def require_possible(name: str, layers: int | str, past: int) -> None:
    """Refuse what would fail after it has been built.

    Args:
        name: of the component.
        layers: how many; ``full`` for all.
        past: tokens.

    Raises:
        UserError: no such decoder; it has too few positions for the past; or the memory would not hold PyTorch in
            float32 beside our float32 graph.
    """
    _, decoder = described(name)
    positions = decoder.sizes(_config()).positions
    most = (positions - 1) // LONGER
    if past > most:
        raise UserError(
            f"--past: {past} is not allowed: a past {LONGER} times as long is measured too, and the {name} has "
            f"{positions} positions; give at most {most}"
        )
    needed, free = _BYTES_A_WEIGHT * _weights(name, layers) + _BESIDE, _available()
    if needed > free:
        raise UserError(
            f"--layers: PyTorch and our graph, both in float32, take {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free; "
            "give a smaller number"
        )


def synthesize(name: str, layers: int | str, folder: Path) -> Decoder:
    """Write seeded weights to ``models/source/<name>`` in a folder, as ``pull`` would; return what they are of."""
    component, decoder = described(name)
    synthetic.write(component, _SEED, layers, folder / "models/source" / name, CONFIGS)
    return decoder


def _weights(name: str, layers: int | str) -> int:
    """Count the weights of a decoder of so many layers, the embedding table aside: it is never in memory."""
    component, _ = described(name)
    count = 0
    for tensor, spec in component.tensors(_config()).items():
        layer = re.search(r"\.layers\.(\d+)\.", tensor)
        beyond = layer is not None and layers != "full" and int(layer[1]) >= int(layers)
        if not beyond and not tensor.endswith(".embed_tokens.weight"):
            count += math.prod(spec.shape)
    return count


def _config() -> Mapping[str, Any]:
    return artifact.read_json(CONFIGS / "config.json")


def _available() -> int:
    import psutil

    return psutil.virtual_memory().available
