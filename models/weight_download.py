"""Fetch an official weight file, only when the user asked for it with --download."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from models.checkpoint import OFFICIAL_NAME, RELEASE
from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.core.log import LOGGER, progress

TIMEOUT_S, CHUNK = 30, 1 << 20
MIN_BYTES, MAX_BYTES = 100_000, 2 << 30
KNOWN = {  # name -> (bytes, SHA-256) of release v7.0
    "yolov5n.pt": (4_062_133, "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3"),
    "yolov5s.pt": (14_808_437, "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee"),
    "yolov5m.pt": (42_806_829, "beef2600e80c86c23d40a3c74c87de7dd22e9dce0b0c960ee2bf1792698f0f69"),
    "yolov5l.pt": (93_622_629, "c2323a42865bdc3d8e41795548d695b18593b3c99e9a1a8ee59b37fb46041af2"),
    "yolov5x.pt": (174_114_333, "9f27a794fa0308e2606f90565164571d6f0a0ba18a3ce2e5e5d323b71c157859"),
}


def on_disk(text: str, download: bool) -> Path:
    """Return the file `text`; an official name that is not on disk is fetched if `download` allows it."""
    path = Path(text)
    return fetch_official(path.name, path.parent) if download and not path.exists() else path


def fetch_official(name: str, folder: Path) -> Path:
    """Return `folder/name`, fetched from YOLOv5's release page if it is not there.

    Size and checksum are compared where they are known. A name the page does not have, no network, or a file that is
    not the one expected raise UserError, and nothing is left behind.
    """
    path = Path(folder) / name
    if path.is_file():
        return path
    if not OFFICIAL_NAME.fullmatch(name):
        raise UserError(f"{path}: no such file, and {name!r} is no official weight file that --download could fetch")
    url = f"{RELEASE}/{name}"
    LOGGER.info(f"fetching {url} (these weights have their own licence, AGPL-3.0)")
    size, checksum = KNOWN.get(name, (None, None))
    with atomic_path(path) as temporary:
        received, digest = _fetch(url, temporary, size)
        _check(url, received, digest, size, checksum)
    return path


def _fetch(url: str, path: Path, size: int | None) -> tuple[int, str]:
    """Do `_receive`; what goes wrong on the way is one line."""
    try:
        return _receive(url, path, size)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched ({getattr(error, 'reason', None) or error})") from error


def _receive(url: str, path: Path, size: int | None) -> tuple[int, str]:
    """Write what the server sends to `path`; return its length and SHA-256."""
    digest, received = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "polyolo"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, path.open("wb") as target:
        announced = int(response.headers.get("Content-Length") or 0)
        with progress(total=announced or size, text=url.rsplit("/", 1)[-1], unit="B") as bar:
            while chunk := response.read(CHUNK):
                received += len(chunk)
                if received > (size or MAX_BYTES):
                    break  # more than expected: the check will say so
                target.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
    if received < announced:
        raise ConnectionError(f"broke off after {received} of {announced} bytes")
    return received, digest.hexdigest()


def _check(url: str, received: int, digest: str, size: int | None, checksum: str | None) -> None:
    if size is not None and (received != size or digest != checksum):
        raise UserError(f"{url}: not the file of release v7.0 ({received} bytes, SHA-256 {digest[:16]}…); not kept")
    if not MIN_BYTES <= received <= MAX_BYTES:
        raise UserError(f"{url}: {received} bytes cannot be a weight file; not kept")
    if size is None:
        LOGGER.info(f"no checksum is known for {url.rsplit('/', 1)[-1]}; received SHA-256 {digest}")
