"""What a component is fed: recordings of one clip each, and batches cut from them.

The stage ``inputs`` writes them to ``models/inputs/<component>``, one file for those that calibrate and one for those
that judge; calibration and judgement never see the same clips. A recording is the component's first input for one
clip, without its batch axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from omni.contract import GraphContract
from omni.errors import Problem

__all__ = ["CALIBRATION", "FOLDER", "HELD_OUT", "feed", "read"]

CALIBRATION, HELD_OUT = "calibration", "held_out"
FOLDER = Path("models/inputs")


def read(name: str, split: str) -> dict[str, np.ndarray]:
    """Return a component's recordings by clip; ``split`` is ``CALIBRATION`` or ``HELD_OUT``.

    Raises:
        Problem: there are none.
    """
    path = FOLDER / name / f"{split}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        raise Problem(f"{path}: missing; run python -m export.inputs {name}, or dvc repro") from None
    except SafetensorError as error:
        raise Problem(f"{path}: cannot be read ({error}); run python -m export.inputs {name} again") from None


def feed(contract: GraphContract, recordings: Sequence[np.ndarray], lengths: Sequence[int]) -> Mapping[str, np.ndarray]:
    """Return a graph's inputs for a batch with one row of each length.

    Args:
        contract: of the graph.
        recordings: of its first input; strung together, rows are cut from them one after another, starting over where
            they do not suffice.
        lengths: of the rows; shorter ones are filled up with zeros.

    Raises:
        Problem: rows of unequal length for a graph that takes only equal ones.
    """
    if len(set(lengths)) > 1 and not contract.ragged:
        raise Problem(f"lengths {list(lengths)}: {contract.inputs[0].name} takes rows of one length only")
    port = contract.inputs[0]
    axis = contract.axis
    signal = np.concatenate([np.moveaxis(recording, axis, 0) for recording in recordings])
    batch = np.zeros((len(lengths), max(lengths), *signal.shape[1:]), signal.dtype)
    position = 0
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = signal[np.arange(position, position + length) % len(signal)]
        position += length
    fed = {port.name: np.ascontiguousarray(np.moveaxis(batch, 1, axis + 1))}
    if contract.ragged:
        fed[contract.inputs[1].name] = np.array(lengths, np.int64)
    return fed
