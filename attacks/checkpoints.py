"""Attempts by way of what is read beside graphs: pickles, arrays, settings, and checkpoints."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from attacks.attempt import Attempt, Target, reseal
from components import component
from pull import speakers
from pull.folder import FolderSnapshot
from pull.plan import config_of
from qwen_omni_onnx.arrays import read_array
from qwen_omni_onnx.common.speakers import VOICES, Widths
from qwen_omni_onnx.token2wav.settings import SETTINGS, read_limits, read_variants
from qwen_omni_onnx.voices import read_voices

__all__ = ["ATTEMPTS", "read_arrays", "read_checkpoint", "read_settings", "read_speakers"]


class _Command:
    """An object that a pickle makes by running a command."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self._mark}'",)


def read_arrays(path: str) -> None:
    """Read a ``.npy`` file, or voices, as the run-time does.

    Raises:
        UserError: It is none.
    """
    if path.endswith(".npy"):
        read_array(Path(path))
    else:
        read_voices(Path(path))


def read_speakers(path: str) -> None:
    """Read a checkpoint's ``spk_dict.pt`` as ``pull`` does.

    Raises:
        UserError: It holds anything but voices.
    """
    speakers.read(Path(path).read_bytes(), None, Widths(8, 8))


def read_settings(folder: str) -> None:
    """Read ``sampler.json`` as the run-time does.

    Raises:
        UserError: It is not what this version writes.
    """
    read_limits(Path(folder))
    read_variants(Path(folder))


def read_checkpoint(folder: str) -> None:
    """Read a checkpoint's configuration and licence as ``pull`` does.

    Raises:
        UserError: They are not to be used.
    """
    snapshot = FolderSnapshot(Path(folder))
    config = config_of(snapshot, component("encoder"))
    snapshot.small_file("LICENSE")
    component("encoder").tensors(config)


def _pickles(target: Target) -> list[str]:
    """Put pickles that run a command wherever arrays and voices are read."""
    gave_way, mark = [], target.place / "has run"
    plain = pickle.dumps(_Command(mark))
    objects = io.BytesIO()
    np.save(objects, np.array([_Command(mark)], object), allow_pickle=True)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in (("data.pkl", plain), ("version", b"3"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)
    for name, content in (("plain", plain), ("array", objects.getvalue()), ("archive", packed.getvalue())):
        for suffix, work in ((".npy", read_arrays), (".safetensors", read_arrays), (".pt", read_speakers)):
            path = target.place / f"{name}{suffix}"
            path.write_bytes(content)
            outcome = target.try_work(work, str(path))
            if outcome.kind != "refused" or mark.exists():
                gave_way.append(f"{path.name}: {outcome.kind}: {outcome.said}")
    return gave_way


def _arrays(target: Target) -> list[str]:
    """Let headers of arrays say other shapes and types than there are."""
    gave_way = []
    files: dict[str, bytes] = {}
    for shape in ((1 << 60,), (1 << 31, 1 << 31), (-1,), (1,) * 100, (10,)):
        header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
        files[f"{len(files)}.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    packed = io.BytesIO()
    np.savez(packed, a=np.zeros(3))
    files["packed.npy"] = packed.getvalue()
    for table in (
        {"a/cond": {"dtype": "BF16", "shape": [1, 4], "data_offsets": [0, 8]}},
        {"a/cond": {"dtype": "F32", "shape": [1, 1 << 40], "data_offsets": [0, 1 << 42]}},
        {"a/cond": {"dtype": "F32", "shape": [1, 2], "data_offsets": [-8, 0]}},
        {"a/cond": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}},
    ):
        header = json.dumps(table).encode()
        files[f"{len(files)}.safetensors"] = struct.pack("<Q", len(header)) + header + bytes(8)
    files["long.safetensors"] = struct.pack("<Q", 1 << 62)
    for name, content in files.items():
        path = target.place / name
        path.write_bytes(content)
        outcome = target.try_work(read_arrays, str(path))
        if outcome.kind != "refused":
            gave_way.append(f"{name}: {outcome.kind}: {outcome.said}")
    return gave_way


def _settings(target: Target) -> list[str]:
    """Put numbers without a budget, and values of another type, into ``sampler.json``, and into a voice."""
    folder, gave_way = target.copy("token2wav"), []
    path = folder / SETTINGS
    content = json.loads(path.read_text(encoding="utf-8"))
    values: tuple[Any, ...] = (
        3 * 10**7,
        10**12,
        10**400,
        0,
        -1,
        1.5,
        True,
        "x",
        None,
        [1],
        {},
        float("inf"),
        float("nan"),
    )
    changed = [{**content, "variants": {"a": {"solver": "rk4", "intervals": value}}} for value in values]
    changed += [{**content, "variants": {"a": {"solver": value, "intervals": 2}}} for value in ("x", None, [1], 3)]
    changed += [{**content, key: value} for key in ("codes", "longest", "repeats") for value in values[2:]]
    for change in changed:
        path.write_text(json.dumps(change))
        outcome = target.try_work(read_settings, str(folder))
        if outcome.kind != "refused":
            gave_way.append(f"{change}: {outcome.kind}: {outcome.said}")
    fields = {
        "cond": ("F32", [1, 4], 16),
        "ref_mel": ("F32", [1, 3_000_000, 1], 12_000_000),
        "bos_token": ("I64", [1], 8),
    }
    table, at = {}, 0
    for name, (dtype, shape, size) in fields.items():
        table[f"a/{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table).encode()
    (folder / VOICES).write_bytes(struct.pack("<Q", len(header)) + header + bytes(at))
    reseal(folder)
    outcome = target.try_work(read_arrays, str(folder / VOICES))
    if outcome.kind != "refused":
        gave_way.append(f"3 million frames of a voice: {outcome.kind}: {outcome.said}")
    return gave_way


def _checkpoints(target: Target) -> list[str]:
    """Give checkpoints a billion layers, links to files of the user's, and files of gigabytes."""
    gave_way = []
    for name in ("layers", "link", "licence", "nesting", "not a table"):
        folder = target.place / name
        folder.mkdir()
        audio: Any = {"encoder_layers": 10**9} if name == "layers" else {}
        config: Any = {"model_type": "qwen2_5_omni", "thinker_config": {"audio_config": audio}}
        if name == "not a table":
            config["thinker_config"] = []
        text = "[" * 100_000 if name == "nesting" else json.dumps(config)
        (folder / "config.json").write_text(text)
        if name == "link":
            os.symlink("/etc/hostname", folder / "LICENSE")
        if name == "licence":
            with (folder / "LICENSE").open("wb") as file:
                file.truncate(3 << 30)
        outcome = target.try_work(read_checkpoint, str(folder))
        if outcome.kind != "refused":
            gave_way.append(f"{name}: {outcome.kind}: {outcome.said}")
    return gave_way


ATTEMPTS = (
    Attempt(
        "pickles",
        "pickles that run a command, as arrays, as voices and as a checkpoint's speakers",
        "refused, and nothing has run",
        _pickles,
    ),
    Attempt(
        "arrays",
        "headers of `.npy` and safetensors files that say other shapes and types than there are",
        "refused before memory is taken",
        _arrays,
    ),
    Attempt(
        "settings",
        "solvers of 30 million intervals, numbers of other types in `sampler.json`, voices of 3 million frames",
        "refused before anything is computed",
        _settings,
    ),
    Attempt(
        "checkpoints",
        "a billion layers, nesting without end, a LICENSE of 3 GB, or one that links to a file of the user's",
        "refused before a tensor is looked for",
        _checkpoints,
    ),
)
