"""Image files: unreadable, cut short, tiny, blank, turned, misnamed; and splits that could not be read at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import Gathered, Picture
from utils.datasets.labels.scan import MIN_SIDE_PX

_BLANK_LEVELS = 2  # grey levels that a picture of nothing may have
_FLAT_SHARE = 0.1  # of the height
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".mpo"), "MPO": (".jpg", ".jpeg", ".mpo"), "PNG": (".png",), "BMP": (".bmp",),
    "WEBP": (".webp",), "TIFF": (".tif", ".tiff", ".dng"), "AVIF": (".avif",), "HEIF": (".heic", ".heif"),
}  # fmt: skip


@CHECKS.register("images")
def check_images(gathered: Gathered) -> Iterator[Finding]:
    """Yield what is wrong with files, each file once for each split that has it."""
    yield from gathered.met
    for split in gathered.split_names:
        for picture in gathered.pictures(split).values():
            for kind, text in _faults(picture):
                yield Finding(kind, text, split, picture.path)


def _faults(picture: Picture) -> Iterator[tuple[str, str]]:
    path = picture.path
    if picture.fault:
        yield ("truncated" if "truncated PNG" in picture.fault else "unreadable"), picture.fault
        return
    if picture.cut:
        yield "truncated", picture.cut
    height, width = picture.size_hw or (0, 0)
    if min(height, width) < MIN_SIDE_PX:
        yield "too-small", f"{path}: {width} x {height} pixels"
    if picture.print is not None and picture.print.levels <= _BLANK_LEVELS:
        yield "blank", f"{path}: one colour all over"
    if picture.flat_end > _FLAT_SHARE and not picture.cut:
        yield "flat-end", f"{path}: the lower {100 * picture.flat_end:.0f} % are one colour"
    if picture.orientation != 1:
        yield "turned", f"{path}: EXIF orientation {picture.orientation}"
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES.get(picture.format, (suffix,)):
        yield "suffix", f"{path}: a {picture.format} file"
