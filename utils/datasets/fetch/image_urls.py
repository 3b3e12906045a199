"""Images behind addresses that a program, not a person at a terminal, was given: fetched with care."""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urljoin, urlsplit

from utils.core.errors import UserError

MAX_BYTES = 32 << 20
MAX_REDIRECTS = 5
TIMEOUT_S = 20  # for one answer of the server, and for all of it
_MOVED = (301, 302, 303, 307, 308)
_PIECE = 1 << 16


def is_address(text: str) -> bool:
    """Tell whether `text` is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def is_public(host: str) -> bool:
    """Tell whether an IP address is neither private, loopback, link-local, reserved nor multicast."""
    number = ipaddress.ip_address(host.split("%")[0])
    return number.is_global and not number.is_multicast


def _connect_to_public(address: tuple[str, int], *arguments: Any, **keywords: Any) -> socket.socket:
    """Connect like socket.create_connection, but only to public addresses.

    It looks the name up once and connects to what it checked: a name that changes its address in between gains nothing.
    """
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (UnicodeError, ValueError) as error:
        raise UserError(f"{host[:200]}: no such host") from error
    for entry in found:
        if not is_public(str(entry[4][0])):
            raise UserError(f"{host}: {entry[4][0]} is no public address, refused")
    return socket.create_connection((str(found[0][4][0]), port), *arguments, **keywords)


def _connection(kind: type[http.client.HTTPConnection], *arguments: Any, **keywords: Any) -> http.client.HTTPConnection:
    made = kind(*arguments, **keywords)
    made._create_connection = _connect_to_public  # type: ignore[attr-defined]
    return made


class _PublicHttp(urllib.request.HTTPHandler):
    """http to public addresses."""

    def http_open(self, request: Any) -> Any:
        """Answer one request."""
        return self.do_open(functools.partial(_connection, http.client.HTTPConnection), request)


class _PublicHttps(urllib.request.HTTPSHandler):
    """https to public addresses; certificates are checked as usual."""

    def https_open(self, request: Any) -> Any:
        """Answer one request."""
        return self.do_open(functools.partial(_connection, http.client.HTTPSConnection), request)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: each new address is checked first."""

    def redirect_request(self, *arguments: object, **keywords: object) -> None:
        """Return nothing, which makes the answer an HTTPError."""
        return


def fetch(address: str, private: bool = False, max_bytes: int = MAX_BYTES) -> bytes:
    """Return what is behind an http(s) address, after up to five redirects.

    Hosts in private, loopback, link-local and reserved networks are refused at every hop unless `private`, and proxies
    of the environment are not used then (behaviour.md 5.5); what is larger than `max_bytes` or takes longer than
    TIMEOUT_S is refused too. All faults are UserErrors.
    """
    direct = (urllib.request.ProxyHandler({}), _PublicHttp, _PublicHttps)
    opener = urllib.request.build_opener(_Stay, *(() if private else direct))
    until = time.monotonic() + TIMEOUT_S
    for _ in range(MAX_REDIRECTS + 1):
        if not is_address(address) or not _has_host(address):
            raise UserError(f"{address[:200]}: no http(s) address")
        try:
            request = urllib.request.Request(address, headers={"User-Agent": "polyolo"})
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return _read(answer, address, max_bytes, until)
        except urllib.error.HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in _MOVED or not target:
                raise UserError(f"{address}: the server answers {error.code} {error.reason}") from error
            address = urljoin(address, target)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise UserError(f"{address}: cannot be fetched ({getattr(error, 'reason', None) or error})") from error
    raise UserError(f"{address}: more than {MAX_REDIRECTS} redirects")


def _has_host(address: str) -> bool:
    try:
        return bool(urlsplit(address).hostname)
    except ValueError:
        return False


def _read(answer: Any, address: str, max_bytes: int, until: float) -> bytes:
    """Return the body of an answer, read in pieces so that one who sends a byte now and then is given up."""
    content = bytearray()
    while piece := answer.read1(_PIECE):
        content += piece
        if len(content) > max_bytes:
            raise UserError(f"{address}: larger than {max_bytes >> 20} MiB")
        if time.monotonic() > until:
            raise UserError(f"{address}: did not arrive within {TIMEOUT_S} s")
    return bytes(content)
