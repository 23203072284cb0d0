"""A repository of an OCI registry: its name, credentials for it, requests to it, and its errors in one line.

The package oras finds the credentials, as ``docker login`` and ``oras login`` leave them, and gets tokens. Requests are
not its own: those read a blob into memory whole, wait for minutes where credentials are missing, and send them to
whatever host a redirect leads to.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import oras.auth.utils
import oras.container
import oras.defaults
import oras.provider
import requests
import urllib3
from requests.adapters import HTTPAdapter

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError

__all__ = ["ATTEMPTS", "Body", "Failure", "RangeIgnored", "Reference", "Registry"]

ATTEMPTS = 5  # in a row that bring nothing
_WAIT = 1.0  # seconds before the second attempt; doubled for each further one
_LONGEST_WAIT = 60.0  # seconds, whatever a registry asks for
_TIMEOUT = (30, 300)  # seconds to connect, and between two packets: registries hash gigabytes before they answer
_BUSY = 429
_BLOCK = 2**20
_CUT = (urllib3.exceptions.HTTPError, OSError)  # what reading from a connection raises that ends too early
_LARGEST_ERROR = 2**16  # bytes of an answer in which the reason of an error is looked for

_HOST = r"(?P<host>(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::\d{1,5})?)"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"(?P<name>{_PART}(?:/{_PART})*)"  # as the OCI distribution specification has it; so are tags
_TAG = r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
_REFERENCE = re.compile(f"oci://{_HOST}/{_NAME}{_TAG}", re.ASCII)

# Docker's own registry is called by one name, answers at another, and has its credentials under a third.
_DOCKER_HUB, _DOCKER_HUB_API, _DOCKER_HUB_LOGIN = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"


class Failure(UserError):
    """A request that failed.

    Attributes:
        status: Status of the answer; None if there was none.
        passing: Whether the same request may succeed later.
    """

    def __init__(self, message: str, *, status: int | None = None, passing: bool = False) -> None:
        super().__init__(message)
        self.status, self.passing = status, passing


class RangeIgnored(UserError):
    """The registry would send a blob from its beginning, although only the rest was asked for."""


class Body(Protocol):
    """What is sent with a request: a file, or a part of one."""

    def __len__(self) -> int:
        """Return how many bytes that are."""
        ...

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        ...


@dataclass(frozen=True)
class Reference:
    """The name ``oci://HOST[:PORT]/NAME[:TAG][@DIGEST]``."""

    host: str
    name: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Take a name apart.

        Raises:
            UserError: It is none.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise UserError(
                f"{one_line(text)}: no name in a registry; give oci://HOST[:PORT]/NAME:TAG, HOST and NAME in lower case"
            )
        return cls(found["host"], found["name"], found["tag"], found["digest"])

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.name}"


class Registry:
    """A repository of a registry, which is asked over https; on this machine itself, over http.

    Args:
        reference: Which repository. A tag or digest in it is of no account.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        host = _DOCKER_HUB_API if reference.host == _DOCKER_HUB else reference.host
        plain = _is_loopback(urlsplit(f"//{host}").hostname)
        client = oras.provider.Registry(host, insecure=plain)  # its session keeps no cookies
        self._base = f"{client.prefix}://{host}/v2/"
        self._session, self._tokens = client.session, client.auth
        self._session.auth = _unchanged
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, _Adapter())
        if not plain:
            del self._session.adapters["http://"]  # no redirect leads to where others could listen
        self._basic: str | None = None  # user and password, as they are sent
        self._authorization: str | None = None

    def send(
        self,
        method: str,
        location: str,
        what: str,
        *,
        also: Collection[int] = (),
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Body | bytes] | None = None,
        attempts: int = ATTEMPTS,
    ) -> requests.Response:
        """Return the answer to a request; its content is not read yet.

        Args:
            method: Method of HTTP.
            location: Address: relative to the repository's, or what the registry itself has named.
            what: What it is about, for messages.
            also: Statuses that are no errors here, besides 2xx.
            headers: Headers.
            body: Returns what is sent: a new one for every attempt.
            attempts: How often it is tried while the registry is busy, broken, or cuts the connection.

        Raises:
            Failure: The answer is another one, or there is none.
        """
        url = urljoin(f"{self._base}{self.reference.name}/", location)
        attempt, authorized = 0, False
        while True:
            sent = dict(headers or {})
            if self._authorization is not None and self._is_own(url):
                sent["Authorization"] = self._authorization
            try:
                data = body() if body else None
                response = self._session.request(method, url, headers=sent, data=data, stream=True)
            except requests.RequestException as error:
                failure, after = self._unanswered(error, what), None
            else:
                if response.status_code in also or 200 <= response.status_code < 300:
                    return response
                if response.status_code == 401 and not authorized and self._is_own(response.url):
                    authorized = True
                    if self._authorize(response, what):
                        response.close()
                        continue
                failure, after = self._refused(response, what), response.headers.get("Retry-After")
            attempt += 1
            if not failure.passing or attempt >= attempts:
                raise failure
            self.pause(attempt, after)

    def pause(self, attempt: int, after: str | None = None) -> None:
        """Wait before another attempt, longer after each.

        Args:
            attempt: How many there have been.
            after: Seconds that the registry asks for.
        """
        wait = float(after) if after and after.isdecimal() else _WAIT * 2 ** (attempt - 1)
        time.sleep(min(wait, _LONGEST_WAIT))

    def manifest(self, which: str, largest: int) -> bytes | None:
        """Return a manifest as it is in the registry; None if there is none of that name.

        Args:
            which: Tag or digest.
            largest: Bytes that it may have.

        Raises:
            UserError: The server is no registry, refuses, cuts every connection, or the manifest is larger.
        """
        accepted = ", ".join(oras.defaults.default_manifest_accepted_media_types)
        for attempt in range(1, ATTEMPTS + 1):
            with self.send("GET", f"manifests/{which}", which, also=(404,), headers={"Accept": accepted}) as response:
                if response.status_code == 404:
                    self._require_registry()
                    return None
                with contextlib.suppress(*_CUT):
                    content = _read(response, largest + 1)
                    break
            self.pause(attempt)
        else:
            raise UserError(f"{self._told(which)} cut the connection {ATTEMPTS} times; try again later")
        if len(content) > largest:
            raise UserError(f"{self.reference}: {which}: a manifest of more than {largest} bytes; not a release")
        return content

    def blob(self, digest: str, start: int, end: int, what: str) -> Iterator[bytes]:
        """Yield the bytes of a blob from ``start`` to ``end``, in blocks; go on where a connection was cut.

        Raises:
            RangeIgnored: Only the whole blob can be had.
            UserError: The registry refuses, sends other bytes than were asked for, or cuts every connection.
        """
        fruitless = 0
        while start < end:
            before = start
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-{end - 1}"} if start else {})}
            with self.send("GET", f"blobs/{digest}", what, headers=headers) as response:
                self._require_range(response, start, end, what)
                try:
                    for block in response.raw.stream(_BLOCK, decode_content=False):
                        start += len(block)
                        if start > end:
                            raise UserError(f"{self._told(what)} sends more than the {end} bytes of it; pull again")
                        yield block
                except _CUT:
                    pass
            fruitless = 0 if start > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise UserError(
                    f"{self._told(what)} cut the connection {ATTEMPTS} times, at byte {start}; pull again to go on"
                )
            if start < end:
                self.pause(fruitless + 1)

    def _require_range(self, response: requests.Response, start: int, end: int, what: str) -> None:
        said = response.headers.get("Content-Range", "")
        if start and response.status_code != 206:
            raise RangeIgnored(f"{self._told(what)} ignores Range, and would send all {end} bytes again")
        if start and said.partition("/")[0] != f"bytes {start}-{end - 1}":
            raise UserError(
                f"{self._told(what)} was asked for bytes {start}-{end - 1}, and sends {one_line(said) or 'others'}"
            )

    def _require_registry(self) -> None:
        """Refuse a server that is no registry: it says of everything that it is not found."""
        with self.send("GET", self._base, "v2", also=(401, 403, 404)) as response:
            if response.status_code == 404:
                raise Failure(f"{self.reference}: {self.reference.host} is no OCI registry; check the host", status=404)

    def _is_own(self, url: str) -> bool:
        """Return whether an address is the registry's: its credentials go nowhere else."""
        own, asked = urlsplit(self._base), urlsplit(url)
        return (own.scheme, own.netloc) == (asked.scheme, asked.netloc)

    def _authorize(self, response: requests.Response, what: str) -> bool:
        """Find what the registry asks for; return whether there is any."""
        challenge = response.headers.get("Www-Authenticate", "")
        self._basic = self._basic or _credentials(self._tokens, self.reference.host)
        scheme = challenge.partition(" ")[0].lower()
        if scheme == "basic" and self._basic:
            self._authorization = f"Basic {self._basic}"
            return True
        if scheme != "bearer":
            return False
        asked = oras.auth.utils.parse_auth_header(challenge)
        realm = urlsplit(asked.realm or "")
        if realm.scheme != "https" and not (realm.scheme == "http" and _is_loopback(realm.hostname)):
            raise Failure(f"{self._told(what)} has tokens given out at {one_line(str(asked.realm))}, not over https")
        try:
            token = self._tokens.request_token(asked)
        except requests.RequestException as error:
            raise self._unanswered(error, what) from None
        except (ValueError, AttributeError):
            token = None  # the answer was none
        self._authorization = f"Bearer {token}" if isinstance(token, str) and token.isascii() else None
        return self._authorization is not None

    def _refused(self, response: requests.Response, what: str) -> Failure:
        status = response.status_code
        said = ""
        with response, contextlib.suppress(*_CUT):
            said = _reason(_read(response, _LARGEST_ERROR))
        host = urlsplit(response.url).netloc
        advice = self._advice(status, said) if self._is_own(response.url) else "try again later"
        message = f"{self.reference}: {what}: {host} answered {status}{f' ({said})' if said else ''}; {advice}"
        return Failure(message, status=status, passing=status == _BUSY or status >= 500)

    def _advice(self, status: int, said: str) -> str:
        """Return what to do about a status."""
        host = self.reference.host
        if status in (413, 507) or "quota" in said.lower():
            return "more than the registry takes; ask whoever runs it"
        if status == 401 and not self._basic:
            return f"it wants credentials: docker login {host}, or set ORAS_USER and ORAS_PASS"
        if status == 401:
            return f"it does not accept the credentials for {host}: docker login {host}, or check ORAS_USER, ORAS_PASS"
        if status == 403:
            return "the credentials, or none, do not allow it; ask whoever runs the registry"
        if status == _BUSY or status >= 500:
            return "try again later"
        if status in (404, 405, 415, 501):
            return "check the name, and whether this is an OCI registry"
        return "check the name"

    def _unanswered(self, error: requests.RequestException, what: str) -> Failure:
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        unreachable = isinstance(reason, urllib3.exceptions.NewConnectionError)  # no such host, or it does not listen
        cut = isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError)
        passing = cut and not unreachable and not isinstance(error, requests.exceptions.SSLError)
        said = one_line(str(reason or error) or type(error).__name__)
        return Failure(f"{self._told(what)} cannot be reached ({said}); check host and network", passing=passing)

    def _told(self, what: str) -> str:
        return f"{self.reference}: {what}: {self.reference.host}"


class _Adapter(HTTPAdapter):
    """Waits for no answer for ever: oras sets no limit when it asks for a token."""

    def send(self, request: Any, **options: Any) -> requests.Response:
        return super().send(request, **{**options, "timeout": options.get("timeout") or _TIMEOUT})


def _unchanged(request: Any) -> Any:
    """Leave a request as it is: without this, requests would put a password of ~/.netrc in place of a token."""
    return request


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _credentials(backend: Any, host: str) -> str | None:
    """Return user and password for a host, as they are sent; None if there are none.

    Args:
        backend: Finds them in Docker's configuration, and asks the helpers that are named there.
        host: The registry.

    Raises:
        UserError: The configuration cannot be read.
    """
    user, password = os.environ.get("ORAS_USER"), os.environ.get("ORAS_PASS")
    if user and password:
        return str(oras.auth.utils.get_basic_auth(user, password))
    place = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"
    if not place.is_file():
        return None
    try:
        config = json.loads(place.read_bytes())
        # Set here, since oras knows ~/.docker alone, and would mix that with DOCKER_CONFIG.
        backend._auth_config = {key: config.get(key) or {} for key in ("auths", "credsStore", "credHelpers")}
        key = _DOCKER_HUB_LOGIN if host == _DOCKER_HUB else host
        backend.load_configs(oras.container.Container("any", registry=key))
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        said = one_line(str(error) or type(error).__name__)
        raise UserError(f"{place}: no credentials can be read ({said}); docker login {host} writes them") from None
    return getattr(backend, "_basic_auth", None)


def _read(response: requests.Response, largest: int) -> bytes:
    """Return the content of an answer, or its beginning: nobody is waited for who never ends."""
    return bytes(response.raw.read(largest, decode_content=True))


def _reason(content: bytes) -> str:
    """Return what a registry says was wrong: code and message of each error."""
    try:
        errors = json.loads(content)["errors"]
        return one_line("; ".join(f"{error['code']}: {error.get('message', '')}".rstrip(": ") for error in errors))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
