"""Build what is compared: a decoder with synthetic weights in a folder of its own, in several schemes.

Each graph is built in a process of its own, which says what memory it took.
``python -m benchmarks.decoder.bench REQUEST`` builds one and ends. REQUEST is JSON: ``component``, ``source`` (folder
of the checkpoint), ``out`` (folder of the graph, which is there already) and ``schemes``.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.building import ROOT
from components import component, talker, thinker
from export.decoder import FLOAT32 as IN_FLOAT32
from export.decoder import Schemes, write
from omni.checkpoint import Checkpoint
from omni.component import Component
from omni.decoder import DecoderSizes, DecoderSpec
from omni.resources import measure_module, progress
from omni.streamed import data_file
from pull import synthetic
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError, run_command

__all__ = [
    "FLOAT32",
    "INT4",
    "INT4_LARGE",
    "INT8",
    "LONGER",
    "TOKENS",
    "Bench",
    "build",
    "build_all",
    "cache_bytes",
    "depth",
    "described",
    "libraries_bytes",
    "measure_build",
    "require_possible",
    "synthesize",
]

FLOAT32, INT8, INT4 = "ours float32", "ours int8-block", "ours int4-block"
INT4_LARGE = "ours int4-block, 128"  # weights that share a scale; in the others, 32 do
NAMES = ("talker", "thinker")
CONFIGS = synthetic.CONFIG
TOKENS = 200  # number of tokens that accuracy is judged on
LONGER = 10  # factor of a longer past, at which a copy of the cache would show
_SEED = 0
_BYTES_A_WEIGHT = 2 * 4  # PyTorch and our float32 graph take turns
_BESIDE = 3 * 2**30  # bytes that both take beside their weights: cache, inner tensors, libraries
_LIBRARIES = ("benchmarks.decoder.bench", "rich.progress", "torch")


@dataclass(frozen=True)
class Bench:
    """What every contender is made from.

    Attributes:
        name: Name of the component.
        decoder: Description of the decoder in the checkpoint.
        folder: Folder with the checkpoint, as ``models/source/<name>``, and with the graphs.
        threads: Intra-op threads of each session; 0 lets ONNX Runtime choose.
        cores: Number of threads of other runtimes, which want a number.
        past: Number of tokens of the prompt, after which a step is taken.
    """

    name: str
    decoder: DecoderSpec
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
        """Checkpoint with the decoder's tensors."""
        return Checkpoint(self.source)

    @cached_property
    def size(self) -> DecoderSizes:
        """Widths of the decoder, and its number of layers."""
        return self.decoder.sizes(self.checkpoint.config)

    @cached_property
    def schemes(self) -> dict[str, Schemes]:
        """Schemes of the matrices in each of our graphs, by the graph's name; the float32 one comes first.

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
        """Random embeddings that all contenders are fed, as many as any of them needs: [tokens, width] float32."""
        count = max(LONGER * self.past + 1, TOKENS)
        return np.random.default_rng(0).standard_normal((count, self.size.embedding), np.float32)


def described(name: str) -> tuple[Component, DecoderSpec]:
    """Return the descriptions of a component and of its decoder in the checkpoint.

    Raises:
        UserError: The component is not a decoder.
    """
    if name not in NAMES:
        raise UserError(f"--component: {name!r} is not allowed: give {' or '.join(NAMES)}")
    return component(name), {"talker": talker.DECODER, "thinker": thinker.DECODER}[name]


def depth(name: str) -> int:
    """Return the number of layers of a whole decoder."""
    return described(name)[1].sizes(_config()).layers


def require_possible(name: str, layers: int | str, past: int) -> None:
    """Refuse what would fail after it has been built.

    Args:
        name: Name of the component.
        layers: Number of layers; ``full`` for all.
        past: Number of tokens of the prompt.

    Raises:
        UserError: There is no such decoder, it has too few positions for the past, or the memory does not hold PyTorch
            in float32 beside our float32 graph.
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


def synthesize(name: str, layers: int | str, folder: Path) -> DecoderSpec:
    """Write seeded weights to ``models/source/<name>`` in a folder, as ``pull`` would.

    Args:
        name: Name of the component.
        layers: Number of layers; ``full`` for all.
        folder: Folder that gets ``models``.

    Returns:
        The description of the decoder in the checkpoint.
    """
    component, decoder = described(name)
    synthetic.write(component, _SEED, layers, folder / "models/source" / name, CONFIGS)
    return decoder


def build_all(bench: Bench) -> dict[str, dict[str, int]]:
    """Build all graphs; return by name what :func:`measure_build` returns."""
    found = {}
    with progress("building", len(bench.schemes)) as advance:
        libraries = libraries_bytes(*_LIBRARIES)
        for name, schemes in bench.schemes.items():
            graph = bench.graph(name)
            graph.parent.mkdir()
            request = {"component": bench.name, "source": str(bench.source), "out": str(graph.parent)}
            request_json = json.dumps({**request, "schemes": asdict(schemes)})
            found[name] = measure_build(graph, libraries, "benchmarks.decoder.bench", request_json)
            advance(1)
    return found


def measure_build(graph: Path, libraries: int, module: str, *arguments: str) -> dict[str, int]:
    """Run a module that writes a graph, in a process of its own.

    Args:
        graph: File that the module writes.
        libraries: Memory of the module's libraries in bytes; see :func:`libraries_bytes`.
        module: Name of the module.
        *arguments: Arguments of its command.

    Returns:
        Bytes of the graph's data, of the process at its peak, of its libraries, and of the peak above the libraries.

    Raises:
        UserError: The process failed or was killed.
    """
    with contextlib.chdir(ROOT):
        peak = measure_module(module, *arguments)
    return {
        "data_bytes": data_file(graph).stat().st_size,
        "peak_bytes": peak,
        "libraries_bytes": libraries,
        "above_bytes": peak - libraries,
    }


def libraries_bytes(*modules: str) -> int:
    """Return the memory of a process that does nothing but import modules."""
    with contextlib.chdir(ROOT):
        return measure_module("validate.imports", *modules)


def build(request: Mapping[str, Any]) -> None:
    """Build one graph.

    Args:
        request: Keys and values that the module's docstring names.
    """
    _, decoder = described(request["component"])
    write(decoder, Checkpoint(Path(request["source"])), Path(request["out"]), Schemes(**request["schemes"]))


def cache_bytes(size: DecoderSizes, tokens: int) -> int:
    """Return the size of the keys and values of so many tokens, in float32."""
    return 2 * size.layers * size.kv_heads * size.head_dim * tokens * 4


def _weights(name: str, layers: int | str) -> int:
    """Count the weights of a decoder of so many layers, but not the embedding table, which is never in memory."""
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


if __name__ == "__main__":
    run_command(lambda: build(json.loads(sys.argv[1])))
