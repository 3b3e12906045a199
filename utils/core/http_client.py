"""HTTP client of all programs: resumable downloads to disk, and small bodies fetched into memory.

Nothing here runs unless the user asked for it (`--download`, an address as image). `download_file` is for files the
user or one of our data YAMLs names; `fetch_bytes` also serves addresses that arrive from outside, for example in
requests to the service, and therefore refuses private networks by default.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import ipaddress
import math
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from utils.core.errors import UserError
from utils.core.log import LOGGER, progress

DOWNLOAD_TIMEOUT_S = 30  # without a byte
FETCH_TIMEOUT_S = 20  # without a byte, and for the whole body
FETCH_MAX_BYTES = 32 << 20
MAX_REDIRECTS = 5
ATTEMPTS = 5  # consecutive ones that bring no new bytes
_USER_AGENT = {"User-Agent": "polyolo"}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK, _FETCH_CHUNK = 1 << 20, 1 << 16
_DISK_FRACTION = 0.9  # of the free space, for files of unknown size
_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0  # before the second attempt, doubled before each further one
_CONNECTION_ERRORS = (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError)


# ----------------------------------------------------------------------------------------------------------------------
# Downloads to disk


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server and what is known about it; None means unknown."""

    url: str
    size: int | None = None  # bytes
    sha256: str | None = None
    md5: str | None = None  # for publishers that offer nothing stronger
    min_bytes: int = 0  # plausible sizes where `size` is unknown
    max_bytes: int | None = None


def download_file(remote: RemoteFile, path: Path, pause_s: float = _PAUSE_S) -> None:
    """Download a file to `path`, resuming `<path>.part` where an earlier attempt left one.

    The file appears at `path` only once its size and checksums are verified. A lock beside it makes processes that
    want the same file wait for one download.

    Args:
        remote: Address of the file, and the size and checksums to verify.
        path: Destination; an existing file is left as it is.
        pause_s: Seconds before the second attempt.

    Raises:
        UserError: The server cannot be reached or refuses, the disk is full, or the file is not the expected one; such
            a file is removed.
    """
    if path.is_file():
        return
    part = path.with_name(path.name + ".part")
    from filelock import FileLock

    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                if not path.is_file():
                    _receive_all(remote, part, pause_s)
                    _verify(remote, part)
                    part.replace(path)
                    _version_file(part).unlink(missing_ok=True)
            finally:
                with suppress(OSError):
                    lock.unlink()  # still held: those who wait notice that the file is gone, and lock a new one
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def file_digest(path: Path, algorithm: str) -> str:
    """Compute the hexadecimal digest of a file with a progress bar; `algorithm` is a name hashlib knows."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file, progress(total=path.stat().st_size, text=f"verifying {path.stem}", unit="B") as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _version_file(part: Path) -> Path:
    """Path of the ETag or date of a partial file; without one it cannot be resumed."""
    return part.with_name(part.name + ".version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive_all(remote: RemoteFile, part: Path, pause_s: float) -> None:
    """Receive until the file is complete; give up after ATTEMPTS consecutive attempts without progress."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _receive(remote, part)
            return
        except urllib.error.HTTPError as error:
            raise UserError(f"{remote.url}: the server answers {error.code} {error.reason}") from error
        except _CONNECTION_ERRORS as error:
            failures = 1 if _size(part) > before else failures + 1
            reason = getattr(error, "reason", None) or error
            if failures >= ATTEMPTS:
                resumable = _size(part) and _version_file(part).is_file()
                if not resumable:
                    part.unlink(missing_ok=True)
                hint = f"; {part} is kept, run the command again to resume" if resumable else ""
                raise UserError(f"{remote.url}: cannot be downloaded ({reason}){hint}") from error
            LOGGER.warning(f"{remote.url}: connection lost ({reason}); retrying")
            time.sleep(min(_MAX_PAUSE_S, pause_s * 2 ** (failures - 1)))


def _receive(remote: RemoteFile, part: Path) -> None:
    """Request the missing bytes once and append them to `part`."""
    start = _size(part)
    if remote.size is not None and start >= remote.size:
        return  # complete or too long; verification decides
    headers = {**_USER_AGENT, "Accept-Encoding": "identity"}
    version_file = _version_file(part)
    if start and version_file.is_file():
        headers |= {"Range": f"bytes={start}-", "If-Range": version_file.read_text(encoding="utf-8")}
    else:
        start = 0
    try:
        request = urllib.request.Request(remote.url, headers=headers)
        response = urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S)
    except ValueError as error:
        raise UserError(f"{remote.url}: not a valid address ({error})") from error
    with response:
        if response.status != 206 or not str(response.headers.get("Content-Range")).startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file
        announced = response.headers.get("Content-Length")
        total = start + int(announced) if announced and announced.isdecimal() else None
        if remote.size is not None and total is not None and total != remote.size:
            raise UserError(f"{remote.url}: not the expected file ({total} bytes instead of {remote.size}); skipped")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if version and not version.startswith("W/"):  # weak tags do not promise identical bytes
            version_file.write_text(version, encoding="utf-8")
        else:
            version_file.unlink(missing_ok=True)
        _append(response, part, start, total, remote)


def _append(response: Any, part: Path, start: int, total: int | None, remote: RemoteFile) -> None:
    """Write the body behind the first `start` bytes of `part`, within the limits of the file and of the disk."""
    free = shutil.disk_usage(part.parent).free
    expected = remote.size or total
    if expected is not None and expected > start + free:
        raise UserError(f"{remote.url}: needs {expected - start} bytes, but {part.parent} has {free} free")
    limit = expected if expected is not None else int((start + free) * _DISK_FRACTION)
    if remote.max_bytes is not None and limit > remote.max_bytes:
        if expected is not None:
            raise UserError(f"{remote.url}: {expected} bytes, expected at most {remote.max_bytes}; skipped")
        limit = remote.max_bytes
    name = remote.url.rsplit("/", 1)[-1]
    with part.open("r+b" if start else "wb") as target, progress(total=expected, text=name, unit="B") as bar:
        target.seek(start)
        target.truncate()
        bar.update(start)
        while chunk := response.read(_CHUNK):
            target.write(chunk)
            bar.update(len(chunk))
            if target.tell() > limit:
                what = "bytes announced" if expected is not None else "bytes that fit; the server announces no size"
                raise UserError(f"{remote.url}: sends more than the {limit} {what}; stopped")
        received = target.tell()
        target.flush()
        os.fsync(target.fileno())
    if total is not None and received < total:
        raise ConnectionError(f"closed after {received} of {total} bytes")


def _verify(remote: RemoteFile, part: Path) -> None:
    """Compare size and checksums; remove a file that differs."""
    size, fault = part.stat().st_size, ""
    if remote.size not in (None, size):
        fault = f"{size} bytes instead of {remote.size}"
    elif size < remote.min_bytes:
        fault = f"{size} bytes, expected at least {remote.min_bytes}"
    for algorithm, expected in (("sha256", remote.sha256), ("md5", remote.md5)):
        if expected and not fault and (found := file_digest(part, algorithm)) != expected.lower():
            fault = f"{algorithm} {found[:16]}… instead of {expected[:16]}…"
    if fault:
        part.unlink()
        _version_file(part).unlink(missing_ok=True)
        raise UserError(f"{remote.url}: not the expected file ({fault}); removed")


# ----------------------------------------------------------------------------------------------------------------------
# Small bodies into memory


def is_http_url(text: str) -> bool:
    """Check whether `text` is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def fetch_bytes(
    url: str,
    allow_private: bool = False,
    max_bytes: int = FETCH_MAX_BYTES,
    deadline: bool = True,
) -> bytes:
    """Fetch the body behind an http(s) address, following up to MAX_REDIRECTS redirects.

    Args:
        url: The address; it may come from an untrusted source unless `allow_private` is set.
        allow_private: Allow hosts in private, loopback, link-local and reserved networks, and use the proxies of the
            environment. Otherwise the resolved address is checked at every hop, before connecting to it.
        max_bytes: Limit of the body.
        deadline: Whether FETCH_TIMEOUT_S limits the whole transfer, not only the time without a byte.

    Returns:
        The body.

    Raises:
        UserError: Everything that goes wrong. The message shows the address without credentials and query.
    """
    direct = (urllib.request.ProxyHandler({}), _PublicHttpHandler, _PublicHttpsHandler)
    opener = urllib.request.build_opener(_NoRedirect, *(() if allow_private else direct))
    until = time.monotonic() + FETCH_TIMEOUT_S if deadline else math.inf
    for _ in range(MAX_REDIRECTS + 1):
        shown = display_url(url)[:200]
        if not is_http_url(url) or not _has_host(url):
            raise UserError(f"{shown}: not an http or https address")
        try:
            request = urllib.request.Request(url, headers=_USER_AGENT)
            with opener.open(request, timeout=FETCH_TIMEOUT_S) as response:
                return _read_body(response, shown, max_bytes, until)
        except urllib.error.HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in _REDIRECTS or not target:
                raise UserError(f"{shown}: the server answers {error.code} {error.reason}") from error
            url = urljoin(url, target)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise UserError(f"{shown}: cannot be fetched ({getattr(error, 'reason', None) or error})") from error
    raise UserError(f"{display_url(url)}: more than {MAX_REDIRECTS} redirects")


def display_url(url: str) -> str:
    """Format an address for messages: no user name, password, query or fragment."""
    bare = url.split("?", 1)[0].split("#", 1)[0]
    scheme, separator, rest = bare.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def is_public(host: str) -> bool:
    """Check that an IP address is neither private, loopback, link-local, reserved nor multicast."""
    number = ipaddress.ip_address(host.split("%")[0])
    return number.is_global and not number.is_multicast


def _connect_to_public(address: tuple[str, int], *arguments: Any, **keywords: Any) -> socket.socket:
    """Connect like socket.create_connection, but only to public addresses.

    The name is resolved once and the checked address is the one connected to, which defeats DNS rebinding.
    """
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (UnicodeError, ValueError) as error:
        raise UserError(f"{host[:200]}: no such host") from error
    for entry in found:
        if not is_public(str(entry[4][0])):
            raise UserError(f"{host}: {entry[4][0]} is not a public address; refused")
    return socket.create_connection((str(found[0][4][0]), port), *arguments, **keywords)


def _public_connection(
    kind: type[http.client.HTTPConnection], *arguments: Any, **keywords: Any
) -> http.client.HTTPConnection:
    connection = kind(*arguments, **keywords)
    connection._create_connection = _connect_to_public  # type: ignore[attr-defined]
    return connection


class _PublicHttpHandler(urllib.request.HTTPHandler):
    """HTTP to public addresses."""

    def http_open(self, request: Any) -> Any:
        """Open one request."""
        return self.do_open(functools.partial(_public_connection, http.client.HTTPConnection), request)


class _PublicHttpsHandler(urllib.request.HTTPSHandler):
    """HTTPS to public addresses; certificates are verified as usual."""

    def https_open(self, request: Any) -> Any:
        """Open one request."""
        return self.do_open(functools.partial(_public_connection, http.client.HTTPSConnection), request)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Turn redirects into HTTPError, so that each new address is checked before it is requested."""

    def redirect_request(self, *arguments: object, **keywords: object) -> None:
        """Follow nothing."""
        return


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _read_body(response: Any, shown: str, max_bytes: int, until: float) -> bytes:
    """Read the body in small pieces, so that the deadline also ends servers that send a few bytes now and then."""
    content = bytearray()
    while piece := response.read1(_FETCH_CHUNK):
        content += piece
        if len(content) > max_bytes:
            raise UserError(f"{shown}: larger than {max_bytes >> 20} MiB")
        if time.monotonic() > until:
            raise UserError(f"{shown}: not received within {FETCH_TIMEOUT_S} s")
    announced = str(response.headers.get("Content-Length"))
    if announced.isdecimal() and len(content) < int(announced):
        raise ConnectionError(f"closed after {len(content)} of {announced} bytes")
    return bytes(content)
