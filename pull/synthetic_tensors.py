"""The tensors of a synthetic checkpoint: any bytes of their values alone, and those that no component is built from.

Values are drawn from the uniform distribution that PyTorch initializes linear layers with, by integer arithmetic and
exact scaling only, so they are the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import numpy as np

from omni.checkpoint import DTYPES, TensorSpec
from omni.component import Component, Config, Outliers, checkpoint_dtype

__all__ = ["other_tensors", "stream", "tensor_bytes"]

_BLOCK_VALUES = 2**17  # values that fit into a processor's cache are drawn, scaled and cast three times as fast
_COUNTER_VALUES = 4  # values that Philox draws for each step of its counter
_NORM_SPREAD = 0.25  # largest distance of normalization weights from 1
_VISUAL = "thinker.visual"


def stream(key: str) -> np.random.Philox:
    """Return the stream of random integers that belongs to a text."""
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))


def tensor_bytes(
    component: Component | None, name: str, spec: TensorSpec, seed: int, start: int, end: int
) -> Iterator[bytes]:
    """Yield bytes [start, end) of a tensor, in blocks.

    Values are uniform within 1/sqrt(fan-in), or around 1 for a normalization's weights. Fan-in is the product of all
    axes but the first, and for a vector its length. A gain multiplies that bound; for a vector it is the bound.

    Args:
        component: Component whose outliers, gains and factors of columns apply; None for a tensor without them.
        name: Name of the tensor.
        spec: Dtype and shape.
        seed: Seed of all weights.
        start: First byte.
        end: One past the last byte.
    """
    scale = _row_scale(component, name, spec, seed) if component else None
    gains = component.gains.items() if component else ()
    gain = next((gain for pattern, gain in gains if fnmatch(name, pattern)), None)
    factors = component.columns.items() if component else ()
    size = DTYPES[spec.dtype].itemsize
    row = math.prod(spec.shape[1:])
    columns = next((factor(row) for pattern, factor in factors if fnmatch(name, pattern)), None)
    while start < end:
        first, skipped = divmod(start, size)
        stop = min(first + _BLOCK_VALUES, -(-end // size))
        values = _uniform(name, spec, seed, gain, first, stop)
        if scale is not None:
            values *= scale[np.arange(first, stop) // row]
        if columns is not None:
            values *= columns[np.arange(first, stop) % row]
        block = values.astype(DTYPES[spec.dtype]).tobytes()[skipped : end - first * size]
        yield block
        start += len(block)


def _uniform(name: str, spec: TensorSpec, seed: int, gain: float | None, first: int, stop: int) -> np.ndarray:
    """Return values [first, stop) of a tensor, float64, before outliers are scaled."""
    norm = len(spec.shape) == 1 and name.endswith(".weight")
    fan_in = math.prod(spec.shape[1:]) if spec.shape[1:] or gain is not None else spec.shape[0]
    bound = _NORM_SPREAD if norm else (1.0 if gain is None else gain) / math.sqrt(fan_in)
    counter, skipped = divmod(first, _COUNTER_VALUES)
    random = stream(f"{seed}/{name}").advance(counter)
    drawn = random.random_raw(skipped + stop - first)[skipped:]
    fraction = (drawn >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1  # [-1, 1)
    return fraction * bound + float(norm)


def _row_scale(component: Component, name: str, spec: TensorSpec, seed: int) -> np.ndarray | None:
    """Return the factor of each row of a tensor that has outliers; None for any other."""
    found = [outliers for pattern, outliers in component.outliers.items() if fnmatch(name, pattern)]
    return _planted(found[0], spec.shape[0], f"{seed}/{name}/outliers") if found else None


def _planted(outliers: Outliers, rows: int, key: str) -> np.ndarray:
    drawn = stream(key).random_raw(2 * rows) >> np.uint64(11)
    chosen = np.argsort(drawn[:rows])[: outliers.rows]
    scale = np.ones(rows)
    scale[chosen] = outliers.low + (outliers.high - outliers.low) * drawn[rows:][: len(chosen)] * 2.0**-53
    return scale


def other_tensors(config: Config) -> dict[str, TensorSpec]:
    """Return the tensors that no component is built from, by name: those of vision, and a few small ones.

    So a synthetic checkpoint has all that the real one has, and a pull has something to leave out. The last one is a
    guess: the hub's index counts 2,448 tensors, one more than transformers' modules have parameters, and the rotary
    embedding's frequencies are what an older version would have saved.

    Args:
        config: Completed configuration.
    """
    dtype, thinker = checkpoint_dtype(config), config["thinker_config"]
    shapes: dict[str, tuple[int, ...]] = {
        "thinker.audio_tower.audio_bos_eos_token.weight": (2, thinker["audio_config"]["output_dim"])
    }
    if "vision_config" in thinker:
        shapes |= {f"{_VISUAL}.{name}": shape for name, shape in _visual(thinker["vision_config"]).items()}
    found = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
    head = config["token2wav_config"]["dit_config"]["head_dim"]
    return {**found, "token2wav.code2wav_dit_model.rotary_embed.inv_freq": TensorSpec("F32", (head // 2,))}


def _visual(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    }
    for block in (f"blocks.{number}" for number in range(vision["depth"])):
        shapes |= {f"{block}.{norm}.weight": (width,) for norm in ("norm1", "norm2")}
        for name in ("q", "k", "v", "proj"):
            shapes |= _linear(f"{block}.attn.{name}", width, width)
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            shapes |= _linear(f"{block}.mlp.{name}_proj", rows, columns)
    shapes["merger.ln_q.weight"] = (width,)
    return shapes | _linear("merger.mlp.0", merged, merged) | _linear("merger.mlp.2", vision["out_hidden_size"], merged)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
