"""Reads a repository at one commit, by files or byte ranges: of the Hugging Face Hub, or a server with its protocol.

The client uses huggingface_hub's own URLs, metadata, tokens, session and back-off; ``HF_ENDPOINT``, ``HF_TOKEN`` and
proxies work as they do there. A large file's storage address is resolved once and then requested without the token.
Nothing is kept in huggingface_hub's cache: its own download would store every file there a second time.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, http_stream_backoff

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.hub_errors import Advice, told

__all__ = ["HubFile", "HubRepository"]

_COMMIT = re.compile(r"[0-9a-f]{5,64}")
_TIMEOUT = httpx2.Timeout(30.0)
_FRUITLESS_ATTEMPTS = 5  # attempts in a row without a single byte
_EXPIRED = 403  # status of storage once a signed address has expired


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it.

    Attributes:
        nbytes: Its size.
        sha256: Its SHA-256, if it is in the storage for large files; else None.
        blob: Name of its object in Git: a hash of its content, where it is not in that storage.
    """

    nbytes: int
    sha256: str | None
    blob: str


class HubRepository:
    """A repository at one commit, to which the revision is resolved first.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit.
        advice: What to do about faults.
        retries: Attempts after a failure that may pass (429, 5xx, a cut connection).
        wait: Seconds before the first retry; doubled for each further one.

    Attributes:
        repository: ``owner/name``.
        commit: The commit.
    """

    def __init__(self, repository: str, revision: str, advice: Advice, *, retries: int = 5, wait: float = 1.0) -> None:
        self.repository = repository
        self._advice = advice
        self._request_options: dict[str, Any] = {
            "timeout": _TIMEOUT,
            "follow_redirects": True,
            "max_retries": retries,
            "base_wait_time": wait,
        }
        self.commit = self._commit(revision)
        self._metadata: dict[str, HfFileMetadata] = {}  # with the storage address that is valid now
        self._first: dict[str, HfFileMetadata] = {}  # as first seen
        self._tags: dict[tuple[str, str], str] = {}  # of a file on a host, as first seen

    def files(self) -> dict[str, HubFile]:
        """Return all files by their paths.

        Raises:
            UserError: The hub does not list them.
        """
        listed = f"the files of commit {self.commit}"
        with self._told(listed):
            answer = self._whole(f"{self._api()}/{self.commit}?blobs=true")
        try:
            return {str(entry["rfilename"]): _file(entry) for entry in json.loads(answer)["siblings"]}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise UserError(f"{constants.ENDPOINT}: does not list {listed} of {self.repository}") from None

    def small_file(self, name: str) -> bytes | None:
        """Fetch a whole file; return None if the repository has none of that name."""
        with self._told(name):
            try:
                return self._whole(self._url(name))
            except EntryNotFoundError:
                return None

    def content(self, name: str, nbytes: int) -> bytes:
        """Return a whole file of a size that is known; no more is taken.

        Raises:
            UserError: As :meth:`read` does.
        """
        blocks: list[bytes] = []
        self.read(name, 0, nbytes, lambda _, block: blocks.append(block))
        return b"".join(blocks)

    def file_bytes(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            UserError: There is no such file, or the hub does not give its size.
        """
        with self._told(name):
            metadata = self._resolve(name)
        if metadata.size is None:
            raise UserError(f"{name}: the hub does not say how large it is")
        return metadata.size

    def version(self, name: str) -> str:
        """Return the ETag of a file."""
        with self._told(name):
            return self._resolve(name).etag or ""

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Fetch bytes [start, end) of a file and pass them to ``write(offset, block)``; resume after a cut connection.

        Raises:
            UserError: The server ignores Range or sends other bytes than requested, the file changed since it was first
                resolved, or several attempts in a row brought nothing.
        """
        fruitless = 0
        while start < end:
            before = start
            with self._told(name):
                start, fault = self._read_once(name, start, end, write)
            fruitless = fruitless + 1 if start == before else 0
            if fruitless == _FRUITLESS_ATTEMPTS:
                raise UserError(f"{name}: {fault}, {fruitless} times in a row, at byte {start}; run again to go on")

    def _read_once(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> tuple[int, str]:
        """Read on from ``start``; return the position that was reached, and what was wrong if that is not ``end``."""
        metadata = self._resolve(name)
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if self._is_hub(metadata.location):
            headers = {**build_hf_headers(), **headers}
        # A cut must not get out of the inner block: the back-off would take it for its own and answer a second time.
        with self._stream(metadata.location, headers) as response, contextlib.suppress(httpx2.TransportError):
            if response.status_code == _EXPIRED and not self._is_hub(metadata.location):
                self._metadata.pop(name, None)  # resolved anew by the next attempt; another worker may have been first
                return start, f"the storage host answered {_EXPIRED}"
            self._require_range(response, name, metadata, start, end)
            for block in response.iter_raw():
                if start + len(block) > end:
                    raise UserError(f"{name}: the server sent more than the bytes up to {end - 1} that were asked for")
                write(start, block)
                start += len(block)
        return start, "the connection was cut"

    def _require_range(
        self, response: httpx2.Response, name: str, metadata: HfFileMetadata, start: int, end: int
    ) -> None:
        said = response.headers.get("Content-Range", "")
        if response.status_code in (206, 416) and said and said.rpartition("/")[2] not in (str(metadata.size), "*"):
            raise UserError(f"{name}: changed while it was read ({metadata.size} bytes before, now {said}); run again")
        hf_raise_for_status(response)
        if response.status_code == 200 and (start, end) == (0, metadata.size):
            return  # all of it was asked for
        if response.status_code != 206:
            raise UserError(
                f"{name}: the server ignores Range (answered {response.status_code}) and would send all "
                f"{metadata.size} bytes; set HF_ENDPOINT to one that does not, or {self._advice.download}"
            )
        if said.partition("/")[0] != f"bytes {start}-{end - 1}":
            raise UserError(f"{name}: asked for bytes {start}-{end - 1}, the server sent {said or 'no Content-Range'}")
        tag = (response.headers.get("etag") or "").removeprefix("W/").strip('"')
        before = self._tags.setdefault((name, str(response.url.host)), tag)
        if tag != before:
            raise UserError(f"{name}: changed while it was read (ETag {before} before, now {tag}); run again")

    def _resolve(self, name: str) -> HfFileMetadata:
        metadata = self._metadata.get(name)
        if metadata is None:
            metadata = get_hf_file_metadata(self._url(name), retry_on_errors=True)
            first = self._first.setdefault(name, metadata)
            if (metadata.size, metadata.etag) != (first.size, first.etag):
                raise UserError(f"{name}: changed on the hub while it was read; run again")
            self._metadata[name] = metadata
        return metadata

    def _commit(self, revision: str) -> str:
        # Not HfApi.model_info: that one does not wait and try again when the hub is busy.
        with self._told(f"revision {revision}"):
            answer = self._whole(f"{self._api()}/{quote(revision, safe='')}")
        try:
            commit = json.loads(answer)["sha"]
        except (ValueError, TypeError, KeyError):
            commit = None
        if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
            raise UserError(f"{constants.ENDPOINT}: names no commit for revision {revision} of {self.repository}")
        return commit

    def _api(self) -> str:
        return f"{constants.ENDPOINT}/api/models/{self.repository}/revision"

    def _url(self, name: str) -> str:
        return hf_hub_url(self.repository, name, revision=self.commit)

    def _whole(self, url: str) -> bytes:
        response = http_backoff("GET", url, headers=build_hf_headers(), **self._request_options)
        hf_raise_for_status(response)
        return response.content

    def _stream(self, url: str, headers: dict[str, str]) -> contextlib.AbstractContextManager[httpx2.Response]:
        return http_stream_backoff("GET", url, headers=headers, **self._request_options)

    def _is_hub(self, url: str) -> bool:
        hub, asked = httpx2.URL(constants.ENDPOINT), httpx2.URL(url)
        return (hub.scheme, hub.host, hub.port) == (asked.scheme, asked.host, asked.port)

    def _told(self, what: str) -> contextlib.AbstractContextManager[None]:
        return told(self.repository, what, self._advice)


def _file(entry: dict[str, Any]) -> HubFile:
    large = entry.get("lfs")
    return HubFile(int(entry["size"]), None if large is None else str(large["sha256"]), str(entry["blobId"]))
