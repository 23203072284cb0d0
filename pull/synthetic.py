"""Seeded weights with the 7B's architecture, so that a machine with no network can build everything.

Weights are drawn from the uniform distribution that PyTorch initializes linear layers with, by integer arithmetic
and exact scaling only: the same bytes on every machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from omni import artifact
from omni.checkpoint import DTYPES, TensorSpec, encode_header
from omni.component import Component, Config, Outliers
from omni.identity import MODEL
from omni.resources import progress
from omni.voices import VOICES, widths_of
from pull import synthetic_text
from pull.draws import stream
from pull.origin import made_up_model
from pull.speakers import encode
from pull.synthetic_voices import made_up
from pull.write import source_facts

__all__ = ["CONFIG", "CONFIGS", "write"]

CONFIGS = {"7b": Path(__file__).with_name("qwen2_5_omni_7b"), "tiny": Path(__file__).with_name("tiny")}
CONFIG = CONFIGS["7b"]
_BLOCK_VALUES = 2**17  # what fits into a processor's cache is drawn, scaled and cast three times as fast
_NORM_SPREAD = 0.25  # of normalization weights around 1


def write(component: Component, seed: int, layers: int | str, folder: Path, configs: Path = CONFIG) -> None:
    """Write ``models/source/<component>`` as ``pull`` would from a real checkpoint.

    Args:
        component: which.
        seed: of all weights.
        layers: how many of its layers, from the first; ``full`` for all.
        folder: where to.
        configs: folder with the checkpoint's configuration files.
    """
    config = artifact.read_json(configs / "config.json")
    if component.depth and layers != "full":
        config = _shallow(config, component, int(layers))
    specs = component.tensors(config)
    with (
        artifact.writing(folder, kind="source", component=component.name) as beside,
        (beside / "model.safetensors").open("wb") as file,
        progress("synthesize", sum(spec.nbytes for spec in specs.values()), in_bytes=True) as advance,
    ):
        artifact.write_json(beside / "config.json", config)
        for name in component.companions:
            artifact.write_json(beside / name, artifact.read_json(configs / name))
        if component.voices:
            vocabulary = config["thinker_config"]["text_config"]["vocab_size"]
            voices = made_up(widths_of(component.interface(config)), seed, vocabulary)
            (beside / VOICES).write_bytes(encode(voices))
        if component.text:
            for name, content in synthetic_text.files(config).items():
                (beside / name).write_bytes(content)
        file.write(encode_header(specs))
        for name, spec in specs.items():
            scale = _row_scale(component, name, spec, seed)
            gain = next((gain for pattern, gain in component.gains.items() if fnmatch(name, pattern)), None)
            for block in _values(name, spec, seed, scale, gain):
                file.write(block.tobytes())
                advance(block.nbytes)
        file.flush()
        model = made_up_model("Qwen2.5-Omni-7B").record()
        origin = {"checkpoint": "synthetic", "kind": "synthetic", "seed": seed, MODEL: model}
        artifact.write_json(beside / "source.json", source_facts(beside, origin))


def _shallow(config: Config, component: Component, layers: int) -> dict[str, Any]:
    """Return the configuration with fewer layers."""
    shallow = copy.deepcopy(dict(config))
    *path, last = component.depth
    section = shallow
    for key in path:
        section = section[key]
    if layers < section[last]:
        section[last] = layers
        if component.fewer_layers:
            component.fewer_layers(shallow)
    return shallow


def _values(
    name: str, spec: TensorSpec, seed: int, scale: np.ndarray | None, gain: float | None
) -> Iterator[np.ndarray]:
    """Yield a tensor's values in blocks: uniform within 1/sqrt(fan-in), or around 1 for a normalization's weights.

    Fan-in is the product of all axes but the first; of a vector, its length. A ``gain`` multiplies that bound; of a
    vector, it is the bound.
    """
    random = stream(f"{seed}/{name}")
    norm = len(spec.shape) == 1 and name.endswith(".weight")
    fan_in = math.prod(spec.shape[1:]) if spec.shape[1:] or gain is not None else spec.shape[0]
    bound = _NORM_SPREAD if norm else (1.0 if gain is None else gain) / math.sqrt(fan_in)
    row = math.prod(spec.shape[1:])
    done, total = 0, math.prod(spec.shape)
    while done < total:
        count = min(total - done, _BLOCK_VALUES)
        fraction = (random.random_raw(count) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1  # [-1, 1)
        values = fraction * bound + float(norm)
        if scale is not None:
            values *= scale[np.arange(done, done + count) // row]
        yield values.astype(DTYPES[spec.dtype])
        done += count


def _row_scale(component: Component, name: str, spec: TensorSpec, seed: int) -> np.ndarray | None:
    """Return the factor of each row of a tensor in which rows stand out."""
    found = [outliers for pattern, outliers in component.outliers.items() if fnmatch(name, pattern)]
    return _planted(found[0], spec.shape[0], f"{seed}/{name}/outliers") if found else None


def _planted(outliers: Outliers, rows: int, key: str) -> np.ndarray:
    drawn = stream(key).random_raw(2 * rows) >> np.uint64(11)
    chosen = np.argsort(drawn[:rows])[: outliers.rows]
    scale = np.ones(rows)
    scale[chosen] = outliers.low + (outliers.high - outliers.low) * drawn[rows:][: len(chosen)] * 2.0**-53
    return scale
