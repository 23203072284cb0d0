"""A checkpoint on the Hugging Face Hub, or on anything that speaks its protocol, read by byte ranges.

Built on huggingface_hub's own URLs, metadata, tokens, session and back-off; ``HF_ENDPOINT``, ``HF_TOKEN`` and proxies
work as they do there. A shard's storage address is resolved once and then asked without the token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import httpx2
from huggingface_hub import HfApi, HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_token, hf_raise_for_status, http_stream_backoff

from omni.errors import Problem

__all__ = ["HubSnapshot"]

_TIMEOUT = httpx2.Timeout(30.0)
_FRUITLESS_ATTEMPTS = 5  # in a row without a single byte
_EXPIRED = 403  # what storage answers once a signed address has expired


class HubSnapshot:
    """See :class:`pull.plan.Snapshot`. The revision is resolved to a commit first, and everything read at that commit.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit.
        retries: attempts after a failure that may pass (429, 5xx, a cut connection).
        wait: seconds before the first retry; doubled for each further one.
    """

    def __init__(self, repository: str, revision: str, *, retries: int = 5, wait: float = 1.0) -> None:
        self._repository = repository
        self._retries, self._wait = retries, wait
        with self._told(f"{repository} at {revision}"):
            commit = HfApi().model_info(repository, revision=revision, timeout=30).sha
        if not commit:
            raise Problem(f"{repository}: the hub names no commit for revision {revision}")
        self.commit: str = commit
        self._metadata: dict[str, HfFileMetadata] = {}
        self._tags: dict[tuple[str, str], str] = {}  # of a shard on a host, as first seen

    def describe(self) -> dict[str, str]:
        return {"checkpoint": self._repository, "kind": "hub", "commit": self.commit}

    def small_file(self, name: str) -> bytes | None:
        try:
            with self._told(name), self._get(self._url(name), build_hf_headers()) as response:
                hf_raise_for_status(response)
                return response.read()
        except EntryNotFoundError:
            return None

    def file_bytes(self, name: str) -> int:
        with self._told(name):
            try:
                metadata = self._resolve(name)
            except EntryNotFoundError:
                raise Problem(
                    f"{self._repository}: no {name} at commit {self.commit}, though the index names it"
                ) from None
        if metadata.size is None:
            raise Problem(f"{name}: the hub does not say how large it is")
        return metadata.size

    def read(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> None:
        """Fetch bytes [start, end), going on where a cut connection left off.

        Raises:
            Problem: the server ignores Range, sends other bytes than asked for, the file changed since its
                size was read, or nothing came in several attempts.
        """
        fruitless = 0
        while start < end:
            before = start
            with self._told(name):
                start = self._read_once(name, start, end, write)
            fruitless = fruitless + 1 if start == before else 0
            if fruitless == _FRUITLESS_ATTEMPTS:
                raise Problem(f"{name}: the connection was cut {fruitless} times at byte {start}; run again to go on")

    def _read_once(self, name: str, start: int, end: int, write: Callable[[int, bytes], object]) -> int:
        metadata = self._resolve(name)
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if self._is_hub(metadata.location):
            headers = {**build_hf_headers(), **headers}
        with self._get(metadata.location, headers) as response:
            if response.status_code == _EXPIRED and not self._is_hub(metadata.location):
                del self._metadata[name]  # resolved anew by the next attempt
                return start
            self._require_range(response, name, metadata, start, end)
            with contextlib.suppress(httpx2.TransportError):  # a cut: the caller asks for the rest
                for block in response.iter_raw():
                    if start + len(block) > end:
                        raise Problem(f"{name}: the server sent more than bytes {start}-{end - 1}")
                    write(start, block)
                    start += len(block)
        return start

    def _require_range(
        self, response: httpx2.Response, name: str, metadata: HfFileMetadata, start: int, end: int
    ) -> None:
        hf_raise_for_status(response)
        if response.status_code != 206:
            raise Problem(
                f"{name}: the server ignores Range (answered {response.status_code}) and would send all "
                f"{metadata.size} bytes; set HF_ENDPOINT to one that does not, or download the checkpoint and set "
                "model.source to its folder"
            )
        said = response.headers.get("Content-Range", "")
        if said.rpartition("/")[2] not in (str(metadata.size), "*"):
            raise Problem(f"{name}: changed while it was read ({metadata.size} bytes before, now {said}); run again")
        if said.partition("/")[0] != f"bytes {start}-{end - 1}":
            raise Problem(f"{name}: asked for bytes {start}-{end - 1}, the server sent {said or 'no Content-Range'}")
        tag = (response.headers.get("etag") or "").removeprefix("W/").strip('"')
        before = self._tags.setdefault((name, str(response.url.host)), tag)
        if tag != before:
            raise Problem(f"{name}: changed while it was read (ETag {before} before, now {tag}); run again")

    def _resolve(self, name: str) -> HfFileMetadata:
        if name not in self._metadata:
            self._metadata[name] = get_hf_file_metadata(self._url(name), retry_on_errors=True)
        return self._metadata[name]

    def _url(self, name: str) -> str:
        return hf_hub_url(self._repository, name, revision=self.commit)

    def _get(self, url: str, headers: dict[str, str]) -> contextlib.AbstractContextManager[httpx2.Response]:
        return http_stream_backoff(
            "GET",
            url,
            headers=headers,
            timeout=_TIMEOUT,
            follow_redirects=True,
            max_retries=self._retries,
            base_wait_time=self._wait,
        )

    def _is_hub(self, url: str) -> bool:
        hub, asked = httpx2.URL(constants.ENDPOINT), httpx2.URL(url)
        return (hub.scheme, hub.host, hub.port) == (asked.scheme, asked.host, asked.port)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn the hub's errors into one line each; a missing entry is left to the caller."""
        login = "the token in HF_TOKEN is not accepted" if get_token() else "log in, or set HF_TOKEN"
        try:
            yield
        except RemoteEntryNotFoundError:
            raise
        except GatedRepoError:
            raise Problem(f"{self._repository}: access has to be asked for on the hub first; then {login}") from None
        except RevisionNotFoundError:
            raise Problem(f"{self._repository}: no such revision ({what}); check model.revision") from None
        except RepositoryNotFoundError:
            raise Problem(f"{self._repository}: no such repository, or no access to it; {login}") from None
        except OfflineModeIsEnabled:
            raise Problem("HF_HUB_OFFLINE is set; unset it, or set model.source to synthetic or to a folder") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            advice = login if status in (401, 403) else "try again later" if status in (429, 503) else "cannot go on"
            raise Problem(f"{self._repository}: {what}: the hub answered {status}; {advice}") from None
        except httpx2.HTTPError as error:
            raise Problem(f"{constants.ENDPOINT}: {what}: {error or type(error).__name__}; check the network") from None
