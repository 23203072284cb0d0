"""The checkpoint's speakers: from ``spk_dict.pt``, which is a pickle, to a safetensors file, once.

A pickle can run code, so it is looked at from the outside first: its size, its SHA-256, the archive around it. Then
PyTorch's restricted unpickler opens it, of a version in which that one is not known to have holes, and what comes out
has to be voices and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import FIELDS, NAME, Widths, require_voice

__all__ = ["FILE", "Voices", "encode", "read", "require_size"]

FILE = "spk_dict.pt"
Voices = Mapping[str, Mapping[str, np.ndarray]]
"""By name: ``cond`` [1, width] and ``ref_mel`` [1, frames, mels] float32, ``bos_token`` [1] int64."""

_MAX_BYTES = 64 * 2**20  # of the file, and of all that is in it; the 7B's has a quarter of one
_SAFE_TORCH = (2, 10)  # older ones: memory is corrupted in spite of weights_only, CVE-2026-24747


def require_size(nbytes: int) -> None:
    """Look at the size of the file, before it is fetched.

    Raises:
        UserError: it is too large to be what it should be.
    """
    if nbytes > _MAX_BYTES:
        raise UserError(f"{FILE}: {nbytes:,} bytes; more than {_MAX_BYTES:,} cannot be a few speakers: do not use it")


def read(content: bytes, pinned: str | None, widths: Widths) -> dict[str, dict[str, np.ndarray]]:
    """Return the voices in a ``spk_dict.pt``; see :data:`Voices`.

    Args:
        content: the file.
        pinned: SHA-256 that it must have; any, if None.
        widths: that ``config.json`` gives the voices.

    Raises:
        UserError: the file is too large, has another SHA-256, is cut off, wants to run code, or holds anything but
            voices; PyTorch is too old to open it. Nothing in it was run.
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
    """Return the safetensors file ``qwen_omni_onnx.common.speakers.VOICES``: the same bytes for the same voices."""
    return save({f"{name}/{field}": array for name, voice in voices.items() for field, array in voice.items()})


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
    """Return a tensor's values; views can pretend to be larger than all memory, so ``budget`` bytes are the limit."""
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
    """Return what a stranger wrote, on one line of bearable length."""
    text = repr(value) if isinstance(value, str | int | float) else _kind(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
