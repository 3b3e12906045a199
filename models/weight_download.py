"""Download of YOLOv5's published weights, only with `--download`."""

from __future__ import annotations

from pathlib import Path

from models.checkpoint import YOLOV5_NAME, YOLOV5_RELEASE
from utils.core.errors import UserError
from utils.core.log import LOGGER

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
    if text.startswith("hf://"):
        from models.hub_download import resolve_hub_weights  # loaded only if it is used

        return resolve_hub_weights(text, download)
    path = Path(text)
    return download_weights(path.name, path.parent) if download and not path.exists() else path


def download_weights(name: str, folder: Path) -> Path:
    """Download `name` from YOLOv5's release page into `folder` unless it is there.

    Args:
        name: file name of a published checkpoint, for example `yolov5s.pt`.
        folder: destination folder.

    Returns:
        Path of the file. Size and SHA-256 are verified where they are known.

    Raises:
        UserError: The release has no such file, the network fails, or the file is not the expected one.
    """
    path = Path(folder) / name
    if path.is_file():
        return path
    if not YOLOV5_NAME.fullmatch(name):
        raise UserError(f"{path}: no such file, and --download has no published weights named {name!r}")
    from utils.core.http_client import RemoteFile, download_file, file_digest  # loaded only if it is used

    size, sha256 = KNOWN.get(name, (None, None))
    remote = RemoteFile(f"{YOLOV5_RELEASE}/{name}", size, sha256, min_bytes=MIN_BYTES, max_bytes=MAX_BYTES)
    LOGGER.info(f"downloading {remote.url} (these weights have their own licence, AGPL-3.0)")
    download_file(remote, path)
    if sha256 is None:
        LOGGER.info(f"{name}: no checksum is known; received SHA-256 {file_digest(path, 'sha256')}")
    return path
