"""Sends a file to an OCI registry: from the disk, in pieces, and from where the registry is if it was cut off."""

from __future__ import annotations

import functools
import io
import os
import re
from pathlib import Path
from typing import BinaryIO

import requests

from publish.targets import File
from qwen_omni_onnx.registry.client import ATTEMPTS, Failure, Registry

__all__ = ["has", "upload"]

_PIECE = 64 * 2**20  # bytes that are sent again at most if a connection is cut
_NO_PIECES = (400, 404, 405, 411, 413, 415, 416, 501)  # answers of registries that take blobs whole


def has(registry: Registry, digest: str, path: str) -> bool:
    """Return whether a registry has a blob.

    Args:
        registry: The repository.
        digest: Digest of the blob.
        path: Path of its file, for messages.

    Raises:
        Failure: The registry does not say.
    """
    with registry.send("HEAD", f"blobs/{digest}", path, also=(404,)) as response:
        return response.status_code != 404


def upload(registry: Registry, file: File, path: str) -> None:
    """Send a file that is not there.

    Args:
        registry: The repository.
        file: The file.
        path: Its path, for messages.

    Raises:
        Failure: The registry refuses, or cuts every connection.
    """
    pieces, attempt = file.nbytes > _PIECE, 0
    while True:
        with registry.send("POST", "blobs/uploads/", path, headers={"Content-Length": "0"}) as response:
            location = _location(registry, response, path)
            least = response.headers.get("OCI-Chunk-Min-Length", "")
        try:
            if pieces:
                piece = max(_PIECE, int(least) if least.isdecimal() else 0)
                location = _send_pieces(registry, file, path, location, piece)
            _end(registry, file, path, location, file.nbytes if pieces else 0)
            return
        except _TakesNoPieces:
            pieces = False
        except Failure as failure:
            attempt += 1
            if not failure.passing or attempt == ATTEMPTS:
                raise
            registry.pause(attempt)
            if has(registry, f"sha256:{file.sha256}", path):  # it was the answer that got lost
                return


class _TakesNoPieces(Exception):
    """The registry does not take the pieces of a blob one after another."""


def _end(registry: Registry, file: File, path: str, location: str, start: int) -> None:
    """Send a file from ``start`` on, and end the upload."""
    registry.send(
        "PUT",
        f"{location}{'&' if '?' in location else '?'}digest=sha256:{file.sha256}",
        path,
        headers={"Content-Type": "application/octet-stream"},
        body=functools.partial(_Part, file, start, file.nbytes),
        attempts=1,  # what has come of a body that was cut is the registry's own affair: a new upload is begun
    ).close()


def _send_pieces(registry: Registry, file: File, path: str, location: str, piece: int) -> str:
    """Send a file in pieces; return where the upload is to be ended."""
    start = fruitless = 0
    while start < file.nbytes:
        begin, end = start, min(start + piece, file.nbytes)
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{begin}-{end - 1}"}
        body = functools.partial(_Part, file, begin, end)
        try:
            with registry.send("PATCH", location, path, headers=headers, body=body, attempts=1) as response:
                location, start = _location(registry, response, path), end
        except Failure as failure:
            if failure.status in _NO_PIECES:
                raise _TakesNoPieces from None
            if not failure.passing:
                raise
            start, location = _where(registry, path, location, failure)
        fruitless = 0 if start > begin else fruitless + 1
        if fruitless:
            if fruitless == ATTEMPTS:
                raise Failure(f"{registry.reference}: {path}: cut off {ATTEMPTS} times at byte {start}; publish again")
            registry.pause(fruitless)
    return location


def _where(registry: Registry, path: str, location: str, failure: Failure) -> tuple[int, str]:
    """Return how many bytes of an upload the registry has, and where the next ones go.

    Raises:
        Failure: The one that interrupted it: the registry has forgotten the upload.
    """
    try:
        with registry.send("GET", location, path) as response:
            said = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", ""))
            if said is None:
                raise failure
            last = int(said[1])
            return last + 1 if last else 0, response.headers.get("Location") or location  # 0-0: none, or one
    except Failure:
        raise failure from None


def _location(registry: Registry, response: requests.Response, path: str) -> str:
    location = response.headers.get("Location")
    if not location:
        told = f"{registry.reference}: {path}: the registry does not say where to send it"
        raise Failure(f"{told}; check that it is an OCI registry")
    return str(location)


class _Part(io.RawIOBase):
    """A part of a file, read from the disk as it is sent."""

    def __init__(self, file: File, start: int, end: int) -> None:
        content = file.content
        self._file: BinaryIO = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
        self._start, self._end = start, end
        self._file.seek(start)

    def __len__(self) -> int:
        return self._end - self._start

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most ``size``."""
        left = self._end - self._file.tell()
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place in the part: back to its beginning, where a redirect has it sent elsewhere."""
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._end}[whence]
        return self._file.seek(base + offset) - self._start

    def tell(self) -> int:
        """Return the place in the part."""
        return self._file.tell() - self._start

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
