"""Download of YOLOv5's published weights, only with `--download`."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from models.checkpoint import YOLOV5_NAME, YOLOV5_RELEASE
from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.core.log import LOGGER, progress

TIMEOUT_S, CHUNK_BYTES = 30, 1 << 20
MIN_BYTES, MAX_BYTES = 100_000, 2 << 30  # of a plausible weight file
KNOWN = {  # name -> (bytes, SHA-256) of release v7.0
    "yolov5n.pt": (4_062_133, "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3"),
    "yolov5s.pt": (14_808_437, "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee"),
    "yolov5m.pt": (42_806_829, "beef2600e80c86c23d40a3c74c87de7dd22e9dce0b0c960ee2bf1792698f0f69"),
    "yolov5l.pt": (93_622_629, "c2323a42865bdc3d8e41795548d695b18593b3c99e9a1a8ee59b37fb46041af2"),
    "yolov5x.pt": (174_114_333, "9f27a794fa0308e2606f90565164571d6f0a0ba18a3ce2e5e5d323b71c157859"),
}


def resolve_weights(text: str, download: bool) -> Path:
    """Convert a weight file's name to its path; with `download`, fetch a published file that is missing."""
    path = Path(text)
    return download_weights(path.name, path.parent) if download and not path.exists() else path


def download_weights(name: str, folder: Path) -> Path:
    """Download `name` from YOLOv5's release page to `folder`, unless it is there.

    Size and checksum are verified where they are known; a failed download leaves no file.

    Raises:
        UserError: The release has no such file, the network fails, or the file is not the expected one.
    """
    path = Path(folder) / name
    if path.is_file():
        return path
    if not YOLOV5_NAME.fullmatch(name):
        raise UserError(f"{path}: no such file, and --download has no published weights named {name!r}")
    url = f"{YOLOV5_RELEASE}/{name}"
    LOGGER.info(f"downloading {url} (these weights have their own licence, AGPL-3.0)")
    size, checksum = KNOWN.get(name, (None, None))
    with atomic_path(path) as temporary:
        try:
            received, digest = _receive(url, temporary, size)
        except urllib.error.HTTPError as error:
            raise UserError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError, ValueError) as error:
            raise UserError(f"{url}: download failed ({getattr(error, 'reason', None) or error})") from error
        _verify(url, received, digest, size, checksum)
    return path


def _receive(url: str, path: Path, size: int | None) -> tuple[int, str]:
    """Write the response to `path` and return its length and SHA-256."""
    digest, received = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "polyolo"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, path.open("wb") as target:
        announced = int(response.headers.get("Content-Length") or 0)
        with progress(total=announced or size, text=url.rsplit("/", 1)[-1], unit="B") as bar:
            while chunk := response.read(CHUNK_BYTES):
                received += len(chunk)
                if received > (size or MAX_BYTES):
                    break  # longer than expected, which the verification reports
                target.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
    if received < announced:
        raise ConnectionError(f"connection closed after {received} of {announced} bytes")
    return received, digest.hexdigest()


def _verify(url: str, received: int, digest: str, size: int | None, checksum: str | None) -> None:
    if size is not None and (received != size or digest != checksum):
        raise UserError(f"{url}: not the file of release v7.0 ({received} bytes, SHA-256 {digest[:16]}…); discarded")
    if not MIN_BYTES <= received <= MAX_BYTES:
        raise UserError(f"{url}: {received} bytes cannot be a weight file; discarded")
    if size is None:
        LOGGER.info(f"no checksum is known for {url.rsplit('/', 1)[-1]}; the file has SHA-256 {digest}")
