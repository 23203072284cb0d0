"""Convert the checkpoint's speakers from ``spk_dict.pt``, which is a pickle, to a safetensors file.

A pickle can run code, so its size, its SHA-256 and the archive around it are checked first. Then PyTorch's restricted
unpickler opens it, in a version without known holes, and the result has to be voices and nothing else.

Tools that merge or save a model leave the file out: then that of another checkpoint takes its place.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pull.client import hub_snapshot
from pull.folder import FolderSnapshot
from pull.snapshot import Snapshot
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.hub_name import is_repository
from qwen_omni_onnx.common.speakers import FIELDS, NAME, Widths, require_voice

__all__ = ["FILE", "BorrowedSpeakers", "Voices", "encode", "read", "require_size", "speakers_of"]

FILE = "spk_dict.pt"
Voices = Mapping[str, Mapping[str, np.ndarray]]
"""Voices by name: ``cond`` [1, width] and ``ref_mel`` [1, frames, mels] float32, ``bos_token`` [1] int64."""

_MAX_BYTES = 64 * 2**20  # of the file, and of all that is in it; the 7B's file has 0.25 MB
_SAFE_TORCH = (2, 10)  # older versions corrupt memory in spite of weights_only: CVE-2026-24747


def require_size(nbytes: int) -> None:
    """Refuse a file that is too large to be one of speakers, before it is fetched.

    Args:
        nbytes: Size of the file.

    Raises:
        UserError: It is too large.
    """
    if nbytes > _MAX_BYTES:
        raise UserError(f"{FILE}: {nbytes:,} bytes; more than {_MAX_BYTES:,} cannot be a few speakers: do not use it")


def read(content: bytes, pinned: str | None, widths: Widths) -> dict[str, dict[str, np.ndarray]]:
    """Return the voices in a ``spk_dict.pt``; see :data:`Voices`.

    Args:
        content: Content of the file.
        pinned: SHA-256 that it must have; None allows any.
        widths: Widths of the voices by ``config.json``.

    Raises:
        UserError: The file is too large, has another SHA-256, is cut off, wants to run code, or holds anything but
            voices; or PyTorch is too old to open it. Nothing in it was run.
    """
    require_size(len(content))
    found = hashlib.sha256(content).hexdigest()
    if pinned not in (None, found):
        raise UserError(
            f"{FILE}: its SHA-256 is {found}, params.yaml pins {pinned}; take the file that was pinned, or, if you "
            "trust this one, set model.speakers_sha256 to null"
        )
    table = _unpickled(content)
    if not isinstance(table, dict) or not table:
        raise UserError(f"{FILE}: holds {_kind(table)}, not a table of voices; do not use it")
    return _checked(table, widths)


def encode(voices: Voices) -> bytes:
    """Return the content of ``qwen_omni_onnx.common.speakers.VOICES``, the same bytes for the same voices."""
    return save({f"{name}/{field}": array for name, voice in voices.items() for field, array in voice.items()})


class BorrowedSpeakers:
    """A checkpoint with the file of speakers of another one; see :class:`pull.snapshot.Snapshot`.

    Args:
        snapshot: Checkpoint of all other files.
        lender: Checkpoint of the speakers.
        file: Name of their file in that checkpoint.
    """

    def __init__(self, snapshot: Snapshot, lender: Snapshot, file: str = FILE) -> None:
        self._snapshot, self._lender, self._file = snapshot, lender, file

    def describe(self) -> dict[str, Any]:
        """Return where all but the speakers comes from."""
        return self._snapshot.describe()

    def small_file(self, name: str) -> bytes | None:
        """Return a whole file; None if there is none of that name."""
        return self._of(name).small_file(self._named(name))

    def file_bytes(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return self._of(name).file_bytes(self._named(name))

    def version(self, name: str) -> str:
        """Return a text that changes with a file's bytes."""
        return self._of(name).version(self._named(name))

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Pass bytes [start, end) of a file to ``write(offset, block)``."""
        self._of(name).read(self._named(name), start, end, write)

    def _of(self, name: str) -> Snapshot:
        return self._lender if name == FILE else self._snapshot

    def _named(self, name: str) -> str:
        return self._file if name == FILE else name


def speakers_of(snapshot: Snapshot, where: str) -> Snapshot:
    """Return a checkpoint with the speakers that ``model.speakers`` names.

    Args:
        snapshot: Checkpoint of all other files.
        where: A file, a folder that holds it, or a repository on the hub, whose main branch is read.

    Raises:
        UserError: ``where`` is none of these.
    """
    path = Path(where)
    if path.is_file():
        return BorrowedSpeakers(snapshot, FolderSnapshot(path.parent), path.name)
    if path.is_dir():
        return BorrowedSpeakers(snapshot, FolderSnapshot(path))
    if path.suffix == ".pt" or not is_repository(where):
        raise UserError(f"model.speakers: {where}: no such file; give the path of the base model's {FILE}")
    return BorrowedSpeakers(snapshot, hub_snapshot(where, "main"))


def _unpickled(content: bytes) -> Any:
    import torch  # here alone: only components with voices need it, and it takes seconds

    if not torch.__version__ >= _SAFE_TORCH:
        raise UserError(f"{FILE}: PyTorch {torch.__version__} does not open it safely; install torch>=2.10")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except Exception:  # bytes from a stranger: whatever the library trips over
        raise UserError(f"{FILE}: cut off, or not an archive as torch.save writes it; fetch it again") from None
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > _MAX_BYTES:
        raise UserError(f"{FILE}: its archive is packed, as torch.save never packs it; do not use it")
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # the same
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise UserError(f"{FILE}: asks for {wanted[1]!r}, as no table of tensors does; do not use it") from None
        raise UserError(f"{FILE}: damaged, or no table of tensors ({type(error).__name__}); fetch it again") from None


def _checked(table: dict[Any, Any], widths: Widths) -> dict[str, dict[str, np.ndarray]]:
    voices: dict[str, dict[str, np.ndarray]] = {}
    budget = _MAX_BYTES
    for name, voice in table.items():
        if type(name) is not str or not NAME.fullmatch(name):
            raise UserError(f"{FILE}: {_short(name)} is no name of a voice: up to 64 letters, digits, _ and -")
        where = f"{FILE}: {name}"
        if not isinstance(voice, dict) or set(voice) != set(FIELDS):
            held = ", ".join(map(_short, voice)) if isinstance(voice, dict) else _kind(voice)
            raise UserError(f"{where}: holds {held[:200]}; it must hold exactly {', '.join(FIELDS)}")
        bos_token = voice["bos_token"]
        if type(bos_token) is not int or not 0 <= bos_token < 2**63:
            raise UserError(f"{where}: bos_token is {_short(bos_token)}; it must be a token's number")
        arrays = {field: _array(f"{where}: {field}", voice[field], budget) for field in ("cond", "ref_mel")}
        budget -= sum(array.nbytes for array in arrays.values())
        require_voice(where, arrays["cond"], arrays["ref_mel"], widths)
        voices[name] = {**arrays, "bos_token": np.array([bos_token], np.int64)}
    return voices


def _array(where: str, value: Any, budget: int) -> np.ndarray:
    """Return a tensor's values, at most ``budget`` bytes: a view can pretend to be larger than all memory."""
    import torch

    if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu":
        raise UserError(f"{where} is {_kind(value)}; it must be a plain tensor")
    if value.dtype != torch.float32:
        raise UserError(f"{where} is {value.dtype}; it must be torch.float32")
    if value.numel() * value.element_size() > budget:
        raise UserError(f"{where} is {list(value.shape)}, larger than the whole file may be; do not use it")
    return np.ascontiguousarray(value.detach().resolve_neg().numpy())


def _kind(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _short(value: Any) -> str:
    """Return a value of unknown origin on one line of at most 80 characters."""
    text = repr(value) if isinstance(value, str | int | float) else _kind(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
