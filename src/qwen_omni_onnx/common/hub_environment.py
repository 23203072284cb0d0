"""Checks the environment that the hub's client reads: the error of a wrong setting names it.

huggingface_hub reads its environment when it is imported, and its HTTP client when the first request is made. Both fail
there with errors of their own, so neither is imported at the top of this module.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError

__all__ = ["proxies", "require_environment"]

_TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_FILES = ("SSL_CERT_FILE", "SSLKEYLOGFILE")  # the client opens these files at once


def require_environment() -> None:
    """Refuse settings in the environment that huggingface_hub, or the client that it opens, cannot use.

    Raises:
        UserError: One of them is wrong, or the identity that they name does not get a token.
    """
    _require_endpoint(os.environ.get("HF_ENDPOINT"))
    for name in _TIMEOUTS:
        _require_seconds(name, os.environ.get(name, "0"))
    _require_transport()
    _require_identity()
    _require_headers()


def proxies() -> dict[str, str]:
    """Return the environment variables that name a proxy, with their values."""
    known = ("http_proxy", "https_proxy", "all_proxy")
    return {name: value for name, value in os.environ.items() if name.lower() in known and value}


def _require_endpoint(endpoint: str | None) -> None:
    """Refuse an endpoint that is not an address. The error does not show it: it may hold a password.

    Raises:
        UserError: It is not an address.
    """
    fault = None if endpoint is None else _fault_of(endpoint)
    if fault:
        raise UserError(f"HF_ENDPOINT {fault}; give an address such as https://huggingface.co, or unset it")


def _fault_of(address: str) -> str | None:
    if not address.lower().startswith(("http://", "https://")):
        return "does not begin with http:// or https://"
    if not address.isprintable() or " " in address or set("?#") & set(address):
        return "has a space, a ? or a # in it"
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").encode("idna")  # a label may be too long for a name
        named = bool(host) and parts.port != 0
    except ValueError:
        named = False
    return None if named else "names no host, or a port that there cannot be"


def _require_seconds(name: str, value: str) -> None:
    try:
        fits = 0 <= int(value) <= 10**6
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"{name}: {value!r:.40} is no whole number of seconds; mend or unset it")


def _require_transport() -> None:
    """Set up the client that all requests go through.

    Raises:
        UserError: It cannot use the certificates or the proxy that the environment names.
    """
    import httpx2
    from huggingface_hub.utils import get_session

    try:
        get_session()
    except OSError as error:
        settings = " or ".join(name for name in _FILES if os.environ.get(name))
        if not settings:
            raise
        raise UserError(f"{settings}: {error.strerror or error}; name a file that can be used, or unset it") from None
    except (ImportError, ValueError, httpx2.InvalidURL):
        for name, value in proxies().items():
            _require_proxy(name, value if "://" in value else f"http://{value}")
        raise


def _require_proxy(name: str, address: str) -> None:
    import httpx2

    try:
        httpx2.Client(proxy=address, verify=False).close()
    except ImportError:
        raise UserError(
            f"{name} names a SOCKS proxy: pip install socksio, or give http://HOST:PORT, or unset it"
        ) from None
    except (ValueError, httpx2.InvalidURL):
        raise UserError(f"{name} names no proxy that can be used; give http://HOST:PORT, or unset it") from None


def _require_identity() -> None:
    """Get the token that the hub gives to the identity of a CI job, where the environment asks for that.

    Raises:
        UserError: The job has no identity, or the hub gives it no token.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OIDCError
    from huggingface_hub.utils import get_token

    if not os.environ.get("HF_OIDC_RESOURCE"):
        return
    try:
        get_token()
        return
    except HfHubHTTPError as error:
        host, status = error.response.url.host, error.response.status_code
        said = f"{host} answered {status} ({_plain(error.server_message or 'no')}); see Trusted Publishers on the hub"
    except (OIDCError, httpx2.HTTPError) as error:
        said = _plain(str(error) or type(error).__name__)
    except (AttributeError, KeyError, TypeError, ValueError):  # of JSON that holds no token, or of what is no JSON
        said = "what answers there gives no token; check HF_ENDPOINT"
    raise UserError(f"HF_OIDC_RESOURCE: {said}")


def _plain(said: str) -> str:
    return one_line(" ".join(said.split()))


def _require_headers() -> None:
    """Refuse a token or a user agent that cannot stand in a header.

    Raises:
        UserError: One of them cannot, or the token that the environment points to cannot be read.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    token = "HF_TOKEN" if os.environ.get("HF_TOKEN") else constants.HF_TOKEN_PATH
    try:
        headers = build_hf_headers()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{token}: the token in it cannot be read; write it again with hf auth login") from None
    for header, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            setting = token if header.lower() == "authorization" else "HF_HUB_USER_AGENT_ORIGIN"
            raise UserError(f"{setting} has characters in it that no header can hold; mend or unset it")
