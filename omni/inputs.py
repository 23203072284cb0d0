"""What a component is fed: synthetic activations with a language model's outliers, or arrays that a user recorded.

Calibration and judgement never see the same tokens: ``calibration_batches`` and ``held_out`` are disjoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omni.errors import Problem
from omni.params import InputParams

__all__ = ["calibration_batches", "describe", "held_out"]

_HELD_OUT_EVERY = 5  # of recorded files: the fifth, tenth, ... judge, the others calibrate


def calibration_batches(params: InputParams, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield named batches [batch, seq, width] float32, one at a time.

    Raises:
        Problem: the recorded folder or an array in it is not usable; the message names the file.
    """
    if params.source == "synthetic":
        for index in range(params.calibration_batches):
            random = np.random.default_rng([params.seed, 0, index])
            yield f"synthetic-{index}", _synthetic(params, width, (1, params.calibration_tokens), random)
        return
    for path in _recorded_files(params)[0]:
        yield from _arrays(path, width)


def held_out(params: InputParams, width: int, batch: int, seq: int) -> np.ndarray:
    """Return hidden states [batch, seq, width] float32 that calibration has not seen.

    Recorded ones are cut from the held-out files' tokens in order, starting over where they do not suffice.
    """
    if params.source == "synthetic":
        random = np.random.default_rng([params.seed, 1, batch, seq])
        return _synthetic(params, width, (batch, seq), random)
    tokens = np.concatenate(
        [array.reshape(-1, width) for path in _recorded_files(params)[1] for _, array in _arrays(path, width)]
    )
    index = np.arange(batch * seq) % len(tokens)
    return tokens[index].reshape(batch, seq, width)


def describe(params: InputParams, width: int) -> str:
    """SHA-256 over every calibration batch: what a calibration is bound to."""
    digest = hashlib.sha256()
    for name, array in calibration_batches(params, width):
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _synthetic(params: InputParams, width: int, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Normal values times a channel's scale times a token's scale (log-normal), as in a Thinker's hidden states."""
    model = np.random.default_rng([params.seed, 2])  # which channels stand out is the model's, whatever the tokens
    outliers = min(params.outlier_channels, width)
    channel = np.ones(width, np.float32)
    channel[model.choice(width, outliers, replace=False)] = model.uniform(*params.outlier_range, outliers)
    token = np.exp(params.token_spread * random.standard_normal((*shape, 1), dtype=np.float32))
    return random.standard_normal((*shape, width), dtype=np.float32) * channel * token


def _recorded_files(params: InputParams) -> tuple[list[Path], list[Path]]:
    """Split a folder's arrays into files that calibrate and files that judge."""
    folder = Path(params.source)
    if not folder.is_dir():
        raise Problem(f"inputs.source: {folder}: no such folder; give synthetic, or a folder of recorded arrays")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".safetensors"))
    if len(files) < 2:
        raise Problem(f"{folder}: {len(files)} .npy or .safetensors files; at least 2 are needed, one of them held out")
    if len(files) < _HELD_OUT_EVERY:
        return files[:-1], files[-1:]
    return (
        [path for index, path in enumerate(files, 1) if index % _HELD_OUT_EVERY],
        files[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY],
    )


def _arrays(path: Path, width: int) -> Iterator[tuple[str, np.ndarray]]:
    try:
        if path.suffix == ".npy":
            arrays = {path.name: np.load(path, allow_pickle=False)}
        else:
            from safetensors.numpy import load_file

            arrays = {f"{path.name}/{name}": array for name, array in sorted(load_file(path).items())}
    except Exception as error:  # each library has errors of its own for a file that is not what it says
        raise Problem(f"{path}: cannot be read ({error})") from None
    for name, array in arrays.items():
        if array.ndim not in (2, 3) or array.shape[-1] != width or not array.size:
            raise Problem(f"{path}: {name} is {list(array.shape)}; [seq, {width}] or [batch, seq, {width}] is needed")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
            array = array.reshape(-1, *array.shape[-2:]).astype(np.float32)
        if not np.isfinite(array).all():
            raise Problem(f"{path}: {name} holds NaN or infinity")
        yield name, array
