"""Images behind addresses that a program, not a person at a terminal, was given: fetched with care."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.error
import urllib.request
from urllib.parse import urljoin, urlsplit

from utils.core.errors import UserError

MAX_BYTES = 32 << 20
MAX_REDIRECTS = 5
TIMEOUT_S = 20
_MOVED = (301, 302, 303, 307, 308)


def is_address(text: str) -> bool:
    """Tell whether `text` is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def check_public(address: str) -> None:
    """Raise UserError unless `address` is http(s) and its host has public addresses only (behaviour.md 5.5)."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{address[:200]}: no http(s) address")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError) as error:
        raise UserError(f"{parts.hostname}: no such host") from error
    for entry in found:
        host = ipaddress.ip_address(str(entry[4][0]).split("%")[0])
        if not host.is_global or host.is_multicast:
            raise UserError(f"{parts.hostname}: {host} is no public address, refused")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: each new address is checked first."""

    def redirect_request(self, *arguments: object, **keywords: object) -> None:
        """Return nothing, which makes the answer an HTTPError."""
        return


def fetch(address: str, private: bool = False, max_bytes: int = MAX_BYTES) -> bytes:
    """Return what is behind an http(s) address, after up to five redirects.

    Hosts in private, loopback, link-local and reserved networks are refused at every hop unless `private`; what is
    larger than `max_bytes` too. All faults are UserErrors.
    """
    opener = urllib.request.build_opener(_Stay)
    for _ in range(MAX_REDIRECTS + 1):
        if not is_address(address):
            raise UserError(f"{address[:200]}: no http(s) address")
        if not private:
            check_public(address)
        request = urllib.request.Request(address, headers={"User-Agent": "polyolo"})
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                content: bytes = answer.read(max_bytes + 1)
        except urllib.error.HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in _MOVED or not target:
                raise UserError(f"{address}: the server answers {error.code} {error.reason}") from error
            address = urljoin(address, target)
            continue
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise UserError(f"{address}: cannot be fetched ({getattr(error, 'reason', None) or error})") from error
        if len(content) > max_bytes:
            raise UserError(f"{address}: larger than {max_bytes >> 20} MiB")
        return content
    raise UserError(f"{address}: more than {MAX_REDIRECTS} redirects")
