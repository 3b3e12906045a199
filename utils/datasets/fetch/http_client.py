"""One file from a web server: with progress, continued where it broke off, checked before it counts as there."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.log import LOGGER, progress

TIMEOUT_S, CHUNK = 30, 1 << 20
ATTEMPTS = 5  # in a row that bring nothing
_SHARE = 0.9  # of the free space, for files whose size nobody says
_PAUSE_S = 1.0  # before the second attempt; doubles
_BROKEN = (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError)


@dataclass(frozen=True)
class Wanted:
    """A file on a server and what is known about it; None: unknown."""

    url: str
    size: int | None = None  # bytes
    sha256: str | None = None
    md5: str | None = None  # where the publisher gives no better


def fetch_file(wanted: Wanted, path: Path, pause_s: float = _PAUSE_S) -> None:
    """Bring the file to `path`; what an earlier attempt left in `path`.part is continued.

    UserError: no network, a server that refuses, or another file than the one expected; the latter is removed.
    """
    if path.is_file():
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _bring(wanted, part, pause_s)
        _verify(wanted, part)
        part.replace(path)
        _mark_of(part).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _mark_of(part: Path) -> Path:
    """Return where the server's name for the version of the file is kept."""
    return part.with_name(part.name + ".version")


def _bring(wanted: Wanted, part: Path, pause_s: float) -> None:
    """Receive until the file is whole, in as many attempts as bring something."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(wanted, part)
            return
        except urllib.error.HTTPError as error:
            raise UserError(f"{wanted.url}: the server answers {error.code} {error.reason}") from error
        except _BROKEN as error:
            brought = part.exists() and part.stat().st_size > before
            failures = 1 if brought else failures + 1
            reason = getattr(error, "reason", None) or error
            if failures >= ATTEMPTS:
                kept = f"; {part} is kept and will be continued" if part.exists() and part.stat().st_size else ""
                raise UserError(f"{wanted.url}: cannot be fetched ({reason}){kept}") from error
            LOGGER.warning(f"{wanted.url}: broke off ({reason}), trying again")
            time.sleep(min(60.0, pause_s * 2 ** (failures - 1)))


def _receive(wanted: Wanted, part: Path) -> None:
    start = part.stat().st_size if part.exists() else 0
    if wanted.size is not None and start >= wanted.size:
        return  # whole, or too long: the check will say so
    headers = {"User-Agent": "polyolo", "Accept-Encoding": "identity"}
    mark = _mark_of(part)
    if start and mark.is_file():
        headers |= {"Range": f"bytes={start}-", "If-Range": mark.read_text(encoding="utf-8")}
    else:
        start = 0
    request = urllib.request.Request(wanted.url, headers=headers)
    with _opened(request, wanted.url) as response:
        if response.status != 206 or not str(response.headers.get("Content-Range")).startswith(f"bytes {start}-"):
            start = 0  # the server sends all of it
        announced = response.headers.get("Content-Length")
        total = start + int(announced) if announced and announced.isdecimal() else None
        if wanted.size is not None and total is not None and total != wanted.size:
            raise UserError(f"{wanted.url}: has {total} bytes, {wanted.size} are expected; not fetched")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if version and not version.startswith("W/"):
            mark.write_text(version, encoding="utf-8")
        else:
            mark.unlink(missing_ok=True)
        _write(response, part, start, total, wanted)


def _opened(request: urllib.request.Request, url: str) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except ValueError as error:
        raise UserError(f"{url}: not an address") from error


def _write(response: Any, part: Path, start: int, total: int | None, wanted: Wanted) -> None:
    name, limit = wanted.url.rsplit("/", 1)[-1], wanted.size or total
    room = start + shutil.disk_usage(part.parent).free
    if limit is not None and limit > room:
        raise UserError(f"{wanted.url}: {limit - start} bytes are to come, but {part.parent} has {room - start} free")
    with part.open("r+b" if start else "wb") as target, progress(total=limit, text=name, unit="B") as bar:
        target.seek(start)
        target.truncate()
        bar.update(start)
        while chunk := response.read(CHUNK):
            target.write(chunk)
            bar.update(len(chunk))
            if limit is not None and target.tell() > limit:
                raise UserError(f"{wanted.url}: sends more than the {limit} bytes that are expected; stopped")
            if limit is None and target.tell() > room * _SHARE:
                raise UserError(f"{wanted.url}: sends without end; stopped before {part.parent} is full")
        received = target.tell()
    if total is not None and received < total:
        raise ConnectionError(f"broke off after {received} of {total} bytes")


def _verify(wanted: Wanted, part: Path) -> None:
    size = part.stat().st_size
    faults = [f"{size} bytes instead of {wanted.size}"] if wanted.size not in (None, size) else []
    for name, expected in (("sha256", wanted.sha256), ("md5", wanted.md5)):
        if expected and not faults:
            found = _hash(part, lambda name=name: hashlib.new(name, usedforsecurity=False))  # type: ignore[misc]
            faults += [f"{name} {found[:16]}… instead of {expected[:16]}…"] if found != expected.lower() else []
    if faults:
        part.unlink()
        _mark_of(part).unlink(missing_ok=True)
        raise UserError(f"{wanted.url}: not the file that is expected ({faults[0]}); removed")


def _hash(path: Path, make: Callable[[], Any]) -> str:
    digest = make()
    with path.open("rb") as file, progress(total=path.stat().st_size, text=f"checking {path.stem}", unit="B") as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return str(digest.hexdigest())
