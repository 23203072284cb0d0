"""The values of made-up tensors: any of them alone, the same on every machine.

They are drawn from the uniform distribution that PyTorch initializes linear layers with, by integer arithmetic and
exact scaling only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from omni.checkpoint import DTYPES, TensorSpec
from omni.component import Component, Outliers
from omni.patterns import first_match
from pull.draws import stream

__all__ = ["tensor_bytes"]

_BLOCK_VALUES = 2**17  # what fits into a processor's cache is drawn, scaled and cast three times as fast
_COUNTER_VALUES = 4  # that Philox draws for each step of its counter
_NORM_SPREAD = 0.25  # of normalization weights around 1


def tensor_bytes(
    component: Component | None, name: str, spec: TensorSpec, seed: int, start: int, end: int
) -> Iterator[bytes]:
    """Yield bytes [start, end) of a tensor, in blocks.

    Values are uniform within 1/sqrt(fan-in), or around 1 for a normalization's weights. Fan-in is the product of all
    axes but the first; of a vector, its length. A gain multiplies that bound; of a vector, it is the bound.

    Args:
        component: Says which rows stand out, and what the gains are; nothing does without one.
        name: Name of the tensor.
        spec: Dtype and shape.
        seed: Seed of all weights.
        start: First byte.
        end: One past the last byte.
    """
    scale = _row_scale(component, name, spec, seed) if component else None
    gain = first_match(component.gains, name) if component else None
    size = DTYPES[spec.dtype].itemsize
    row = math.prod(spec.shape[1:])
    while start < end:
        first, skipped = divmod(start, size)
        stop = min(first + _BLOCK_VALUES, -(-end // size))
        values = _uniform(name, spec, seed, gain, first, stop)
        if scale is not None:
            values *= scale[np.arange(first, stop) // row]
        block = values.astype(DTYPES[spec.dtype]).tobytes()[skipped : end - first * size]
        yield block
        start += len(block)


def _uniform(name: str, spec: TensorSpec, seed: int, gain: float | None, first: int, stop: int) -> np.ndarray:
    """Return values [first, stop) of a tensor, float64, before rows stand out."""
    norm = len(spec.shape) == 1 and name.endswith(".weight")
    fan_in = math.prod(spec.shape[1:]) if spec.shape[1:] or gain is not None else spec.shape[0]
    bound = _NORM_SPREAD if norm else (1.0 if gain is None else gain) / math.sqrt(fan_in)
    counter, skipped = divmod(first, _COUNTER_VALUES)
    random = stream(f"{seed}/{name}").advance(counter)
    drawn = random.random_raw(skipped + stop - first)[skipped:]
    fraction = (drawn >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1  # [-1, 1)
    return fraction * bound + float(norm)


def _row_scale(component: Component, name: str, spec: TensorSpec, seed: int) -> np.ndarray | None:
    """Return the factor of each row of a tensor in which rows stand out."""
    outliers = first_match(component.outliers, name)
    return _planted(outliers, spec.shape[0], f"{seed}/{name}/outliers") if outliers else None


def _planted(outliers: Outliers, rows: int, key: str) -> np.ndarray:
    drawn = stream(key).random_raw(2 * rows) >> np.uint64(11)
    chosen = np.argsort(drawn[:rows])[: outliers.rows]
    scale = np.ones(rows)
    scale[chosen] = outliers.low + (outliers.high - outliers.low) * drawn[rows:][: len(chosen)] * 2.0**-53
    return scale
