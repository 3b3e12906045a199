"""Checks of image files: unreadable, truncated, tiny, blank, rotated by EXIF, misnamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import DatasetRecords, ImageRecord
from utils.datasets.labels.scan import MIN_SIDE_PX

_BLANK_LEVELS = 2  # range of grey levels up to which an image is blank
_FLAT_FRACTION = 0.1  # of the height
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".mpo"), "MPO": (".jpg", ".jpeg", ".mpo"), "PNG": (".png",), "BMP": (".bmp",),
    "WEBP": (".webp",), "TIFF": (".tif", ".tiff", ".dng"), "AVIF": (".avif",), "HEIF": (".heic", ".heif"),
}  # fmt: skip


@CHECKS.register("images")
def check_images(records: DatasetRecords) -> Iterator[Finding]:
    """Check every image file, once per split; also yields the findings made while reading."""
    yield from records.findings
    for split in records.split_names:
        for image in records.images(split).values():
            for kind, text in _faults(image):
                yield Finding(kind, text, split, image.path)


def _faults(image: ImageRecord) -> Iterator[tuple[str, str]]:
    path = image.path
    if image.fault:
        yield ("truncated" if "truncated PNG" in image.fault else "unreadable"), image.fault
        return
    if image.truncation:
        yield "truncated", image.truncation
    height, width = image.size_hw or (0, 0)
    if min(height, width) < MIN_SIDE_PX:
        yield "too-small", f"{path}: {width} x {height} pixels"
    if image.fingerprint is not None and image.fingerprint.levels <= _BLANK_LEVELS:
        yield "blank", f"{path}: a single colour"
    if image.flat_end > _FLAT_FRACTION and not image.truncation:
        yield "flat-end", f"{path}: the lower {100 * image.flat_end:.0f} % have a single colour"
    if image.orientation != 1:
        yield "turned", f"{path}: EXIF orientation {image.orientation}"
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES.get(image.format, (suffix,)):
        yield "suffix", f"{path}: content is {image.format}"
