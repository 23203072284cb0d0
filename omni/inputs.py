"""Recorded inputs of components, one recording for each clip, and batches that are cut from them.

The stage ``inputs`` writes them to ``models/inputs/<component>``: one file for calibration and one, from other clips,
for evaluation. A recording is the component's first input for one clip, without the batch axis. A component with
several graphs has another file for each quantized graph: all inputs of that graph while the calibration clips ran
through the component.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "CALIBRATION",
    "FOLDER",
    "HELD_OUT",
    "TEXT",
    "Feeds",
    "Recording",
    "calibration_inputs",
    "case_name",
    "feed",
    "feed_whole",
    "feeds_file",
    "read",
    "recordings",
    "save",
    "tokens_of",
]

CALIBRATION, HELD_OUT = "calibration", "held_out"
FOLDER = Path("models/inputs")
TEXT = "text/"  # what names of texts begin with, and no clip's can
_REPLIES = "replies"  # metadata of the file


class Recording(NamedTuple):
    """A component's first input for one clip or text.

    Attributes:
        name: Name of the clip; of a text, ``TEXT`` and its name.
        array: The input, without the batch axis.
        reply: Tokens at its end that are the Thinker's reply, 0 for none; None if that is not known.
    """

    name: str
    array: np.ndarray
    reply: int | None = None


def read(name: str, split: str) -> dict[str, np.ndarray]:
    """Return a component's recordings by name; ``split`` is ``CALIBRATION`` or ``HELD_OUT``.

    Raises:
        UserError: The recordings are missing, or cannot be read.
    """
    return {recording.name: recording.array for recording in recordings(name, split)}


def save(path: Path, found: Sequence[Recording]) -> None:
    """Write recordings to a file; their names are all different."""
    replies = {recording.name: recording.reply for recording in found if recording.reply is not None}
    metadata = {_REPLIES: json.dumps(replies)} if replies else None
    save_file({recording.name: np.ascontiguousarray(recording.array) for recording in found}, path, metadata)


def recordings(name: str, split: str) -> list[Recording]:
    """Return a component's recordings: clips in the order of their names, then texts.

    Raises:
        UserError: The recordings are missing, or cannot be read.
    """
    path = FOLDER / name / f"{split}.safetensors"
    try:
        with safe_open(path, "numpy") as file:
            replies = json.loads((file.metadata() or {}).get(_REPLIES, "{}"))
            keys = sorted(file.keys(), key=lambda key: (key.startswith(TEXT), key))
            return [Recording(key, file.get_tensor(key), replies.get(key)) for key in keys]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run python -m inputs {name}, or dvc repro") from None
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read ({error}); run python -m inputs {name} again") from None


class Feeds(Mapping[str, Mapping[str, np.ndarray]]):
    """All inputs of one graph of a component with several, by clip; they are read from the file on demand.

    Raises:
        UserError: The file is missing, or cannot be read.
    """

    def __init__(self, name: str, graph: str) -> None:
        self._path = feeds_file(FOLDER / name, graph)
        self._ports: dict[str, list[str]] = {}
        for key in self._open().keys():  # noqa: SIM118 - not a dict
            clip, _, port = key.rpartition("/")
            self._ports.setdefault(clip, []).append(port)

    def __getitem__(self, clip: str) -> Mapping[str, np.ndarray]:
        file = self._open()
        return {port: file.get_tensor(f"{clip}/{port}") for port in self._ports[clip]}

    def __iter__(self) -> Iterator[str]:
        return iter(self._ports)

    def __len__(self) -> int:
        return len(self._ports)

    def _open(self) -> safe_open:
        try:
            return safe_open(self._path, "numpy")
        except FileNotFoundError:
            raise UserError(f"{self._path}: missing; run python -m inputs, or dvc repro") from None
        except SafetensorError as error:
            raise UserError(f"{self._path}: cannot be read ({error}); run python -m inputs again") from None


def calibration_inputs(name: str, graph: str, *, several: bool) -> Mapping[str, np.ndarray] | Feeds:
    """Return what calibrates a graph, by clip: all its inputs, or of a component's only graph the first one.

    Args:
        name: Name of the component.
        graph: File stem of the graph.
        several: Whether the component has several graphs.

    Raises:
        UserError: The recordings are missing, or cannot be read.
    """
    return Feeds(name, graph) if several else read(name, CALIBRATION)


def case_name(contract: GraphContract, lengths: Sequence[int]) -> str:
    """Return the name of the golden case whose rows have these lengths: ``frames400+37+201``."""
    return f"{contract.length}{'+'.join(map(str, lengths))}"


def feeds_file(folder: Path, graph: str) -> Path:
    """Return the file of one graph's inputs in the folder of a component with several graphs."""
    return folder / f"{CALIBRATION}.{graph}.safetensors"


def feed_whole(contract: GraphContract, recording: np.ndarray | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return a graph's inputs for one whole recording; for :class:`Feeds`, these are the recorded inputs.

    Other inputs than the signal and its length are the contract's examples: for a decoder, no padding and no past.
    A decoder returns the logits of every token, so that its head is calibrated on all of them.
    """
    if isinstance(recording, Mapping):
        return recording
    length = recording.shape[contract.axis]
    return contract.example(1, length, {**feed(contract, [recording], [length]), **contract.every_place(1, length)})


def tokens_of(
    contract: GraphContract,
    recordings: Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]],
    clip: str,
    values: np.ndarray,
) -> np.ndarray:
    """Return an activation's values [..., channels] while a clip runs alone, as [tokens, channels].

    Places that the graph fills up beyond the end of the clip are left out.
    """
    tokens = values.reshape(-1, values.shape[-1])
    recording = None if isinstance(recordings, Feeds) else recordings[clip]  # which would be read again
    if recording is None or isinstance(recording, Mapping):
        return tokens
    return tokens[: contract.filled_places(recording.shape[contract.axis], len(tokens))]


def feed(contract: GraphContract, recordings: Sequence[np.ndarray], lengths: Sequence[int]) -> Mapping[str, np.ndarray]:
    """Return a graph's inputs for a batch with one row of each length.

    Args:
        contract: Interface of the graph.
        recordings: Recordings of its first input; rows are cut one after another from their concatenation, which is
            repeated if it is too short.
        lengths: Lengths of the rows; shorter rows are padded with zeros.

    Raises:
        UserError: The lengths differ, and the graph takes only rows of equal length.
    """
    if len(set(lengths)) > 1 and not contract.ragged:
        raise UserError(f"lengths {list(lengths)}: {contract.inputs[0].name} takes rows of one length only")
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
