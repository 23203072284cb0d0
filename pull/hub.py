"""Read a checkpoint by byte ranges from the Hugging Face Hub, or from any server with its protocol.

The client uses huggingface_hub's own URLs, metadata, tokens, session and back-off; ``HF_ENDPOINT``, ``HF_TOKEN`` and
proxies work as they do there. A shard's storage address is resolved once and then requested without the token.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    build_hf_headers,
    get_token,
    hf_raise_for_status,
    http_backoff,
    http_stream_backoff,
)

from pull.client import proxies
from qwen_omni_onnx.common.errors import UserError

__all__ = ["HubSnapshot"]

_TIMEOUT = httpx2.Timeout(30.0)
_FRUITLESS_ATTEMPTS = 5  # attempts in a row without a single byte
_EXPIRED = 403  # status of storage once a signed address has expired


class HubSnapshot:
    """A repository at one commit, to which the revision is resolved first; see :class:`pull.snapshot.Snapshot`.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit.
        retries: Attempts after a failure that may pass (429, 5xx, a cut connection).
        wait: Seconds before the first retry; doubled for each further one.
    """

    def __init__(self, repository: str, revision: str, *, retries: int = 5, wait: float = 1.0) -> None:
        self._repository = repository
        self._request_options: dict[str, Any] = {
            "timeout": _TIMEOUT,
            "follow_redirects": True,
            "max_retries": retries,
            "base_wait_time": wait,
        }
        self.commit = self._commit(revision)
        self._metadata: dict[str, HfFileMetadata] = {}  # with the storage address that is valid now
        self._first: dict[str, HfFileMetadata] = {}  # as first seen
        self._tags: dict[tuple[str, str], str] = {}  # of a shard on a host, as first seen

    def describe(self) -> dict[str, Any]:
        """Return repository and commit."""
        return {"checkpoint": self._repository, "kind": "hub", "commit": self.commit}

    def small_file(self, name: str) -> bytes | None:
        """Fetch a whole file; return None if the repository has none of that name."""
        with self._one_line_errors(name):
            try:
                return self._whole(self._url(name))
            except EntryNotFoundError:
                return None

    def file_bytes(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            UserError: There is no such file, or the hub does not give its size.
        """
        with self._one_line_errors(name):
            metadata = self._resolve(name)
        if metadata.size is None:
            raise UserError(f"{name}: the hub does not say how large it is")
        return metadata.size

    def version(self, name: str) -> str:
        """Return the ETag of a file."""
        with self._one_line_errors(name):
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
            with self._one_line_errors(name):
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
        if response.status_code != 206:
            raise UserError(
                f"{name}: the server ignores Range (answered {response.status_code}) and would send all "
                f"{metadata.size} bytes; set HF_ENDPOINT to one that does not, or download the checkpoint and set "
                "model.source to its folder"
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
        with self._one_line_errors(f"revision {revision}"):
            answer = self._whole(
                f"{constants.ENDPOINT}/api/models/{self._repository}/revision/{quote(revision, safe='')}"
            )
        try:
            commit = json.loads(answer)["sha"]
        except (ValueError, TypeError, KeyError):
            commit = None
        if not isinstance(commit, str):
            raise UserError(f"{constants.ENDPOINT}: names no commit for revision {revision} of {self._repository}")
        return commit

    def _url(self, name: str) -> str:
        return hf_hub_url(self._repository, name, revision=self.commit)

    def _whole(self, url: str) -> bytes:
        response = http_backoff("GET", url, headers=build_hf_headers(), **self._request_options)
        hf_raise_for_status(response)
        return response.content

    def _stream(self, url: str, headers: dict[str, str]) -> contextlib.AbstractContextManager[httpx2.Response]:
        return http_stream_backoff("GET", url, headers=headers, **self._request_options)

    def _is_hub(self, url: str) -> bool:
        hub, asked = httpx2.URL(constants.ENDPOINT), httpx2.URL(url)
        return (hub.scheme, hub.host, hub.port) == (asked.scheme, asked.host, asked.port)

    @contextlib.contextmanager
    def _one_line_errors(self, what: str) -> Iterator[None]:
        """Turn the hub's errors into errors of one line."""
        login = "the token in HF_TOKEN is not accepted" if get_token() else "log in, or set HF_TOKEN"
        try:
            yield
        except RemoteEntryNotFoundError:
            raise UserError(f"{self._repository}: no {what} in it; the checkpoint is not whole") from None
        except GatedRepoError:
            raise UserError(f"{self._repository}: access has to be asked for on the hub first; then {login}") from None
        except RevisionNotFoundError:
            raise UserError(f"{self._repository}: no such revision ({what}); check model.revision") from None
        except RepositoryNotFoundError:
            raise UserError(f"{self._repository}: no such repository, or no access to it; {login}") from None
        except OfflineModeIsEnabled:
            raise UserError(
                "HF_HUB_OFFLINE is set; unset it, or set model.source to synthetic or to a folder"
            ) from None
        except HfHubHTTPError as error:
            status, host = error.response.status_code, error.response.url.host
            passing = status == 429 or status >= 500
            advice = login if status in (401, 403) else "try again later" if passing else _advice("")
            raise UserError(f"{self._repository}: {what}: {host} answered {status}; {advice}") from None
        except httpx2.HTTPError as error:
            said = str(error) or type(error).__name__
            raise UserError(f"{_host(error)}: {what}: {said}; {_advice(said)}") from None
        except (httpx2.InvalidURL, ValueError) as error:  # of a redirect
            raise UserError(f"{self._repository}: {what}: leads to an address that there cannot be ({error})") from None


def _advice(said: str) -> str:
    """Return what to do about a host that does not answer as it should, with the settings that it is reached by.

    Args:
        said: Text of the error.
    """
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "set SSL_CERT_FILE to the certificates of your network (REQUESTS_CA_BUNDLE is not read)"
    settings = [*(["HF_ENDPOINT"] if os.environ.get("HF_ENDPOINT") else []), *proxies()]
    return ", ".join(["check the network", *settings])


def _host(error: httpx2.HTTPError) -> str:
    """Return the host that could not be reached: a firewall may let pass only one of hub and storage."""
    try:
        return str(error.request.url.host)
    except RuntimeError:  # raised by huggingface_hub itself, which names no request
        return constants.ENDPOINT
