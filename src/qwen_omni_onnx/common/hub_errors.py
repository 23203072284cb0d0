"""What the Hugging Face Hub, its storage, or the network has against a request, in one line."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    OIDCError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_token

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.hub_environment import proxies

__all__ = ["Advice", "NoRepository", "NoRevision", "may_pass", "told"]

_SPACE = ("storage", "quota")  # words of what the hub says where there is no room


class NoRepository(UserError):
    """There is no repository of that name."""


class NoRevision(UserError):
    """The repository has no revision of that name."""


@dataclass(frozen=True)
class Advice:
    """What to do about a fault, which depends on what the hub is asked for.

    Attributes:
        absent: What it means that a file is not there.
        revision: Where the name of the revision can be mended.
        elsewhere: What to do without the hub.
        download: What to do where the hub sends no part of a file.
    """

    absent: str
    revision: str
    elsewhere: str
    download: str


@contextlib.contextmanager
def told(repository: str, what: str, advice: Advice) -> Iterator[None]:
    """Turn errors of huggingface_hub and of the network into errors of one line.

    Args:
        repository: ``owner/name``.
        what: What was asked for: a file, a revision, or an action in words.
        advice: What to do about it.
    """
    try:
        yield
    except RemoteEntryNotFoundError:
        raise UserError(f"{repository}: no {what} in it; {advice.absent}") from None
    except GatedRepoError as error:
        access = "access has to be asked for on the hub first"
        raise UserError(f"{repository}: {access}; then {_login(error)}") from None
    except RevisionNotFoundError:
        raise NoRevision(f"{repository}: no such revision ({what}); {advice.revision}") from None
    except RepositoryNotFoundError as error:
        kind = NoRepository if error.response.status_code == 404 else UserError  # 401 hides whether there is one
        raise kind(f"{repository}: no such repository, or no access to it; {_login(error)}") from None
    except OfflineModeIsEnabled:
        raise UserError(f"HF_HUB_OFFLINE is set; unset it, or {advice.elsewhere}") from None
    except OIDCError as error:
        raise UserError(f"HF_OIDC_RESOURCE: {one_line(str(error))}") from None
    except HfHubHTTPError as error:
        status, host = error.response.status_code, error.response.url.host
        raise UserError(f"{repository}: {what}: {host} answered {status}{_said(error)}; {_mend(error)}") from None
    except httpx2.HTTPError as error:
        said = one_line(str(error) or type(error).__name__)
        raise UserError(f"{_host(error)}: {what}: {said}; {_network(said)}") from None
    except (httpx2.InvalidURL, ValueError) as error:  # of a redirect
        said = one_line(str(error))
        raise UserError(f"{repository}: {what}: leads to an address that there cannot be ({said})") from None


def may_pass(error: Exception) -> bool:
    """Return whether it may help to ask again: the hub is busy, or the connection ended."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError)


def _mend(error: HfHubHTTPError) -> str:
    status, said = error.response.status_code, _said(error)
    if may_pass(error):
        seconds = error.response.headers.get("Retry-After", "")
        return f"try again in {seconds} seconds" if re.fullmatch(r"\d{1,6}", seconds, re.ASCII) else "try again later"
    if any(word in said.lower() for word in _SPACE):
        return "make space there, or ask for more"
    if status in (401, 403):
        return _login(error)
    if status == 413:
        return "it is more than the hub takes at once"
    return "mend that" if said and error.response.headers.get("X-Error-Message") else _network("")


def _login(error: HfHubHTTPError) -> str:
    if os.environ.get("HF_OIDC_RESOURCE"):
        return "it does not take what HF_OIDC_RESOURCE and the identity of this job stand for"
    if not get_token():
        return "log in, or set HF_TOKEN"
    return f"the token in HF_TOKEN {'may not do that' if error.response.status_code == 403 else 'is not accepted'}"


def _said(error: HfHubHTTPError) -> str:
    """Return what the hub has said of an error, after a colon; nothing where it has sent a page."""
    said = " ".join((error.server_message or "").split())
    return "" if not said or said.startswith("<") else f": {one_line(said).rstrip('. ')}"


def _network(said: str) -> str:
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
