"""One image file: can it be read, is it whole, which way up is it, what does it look like."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np

from tools.dataset_check.image_hash import fingerprint
from tools.dataset_check.records import Picture
from utils.datasets.image_files import (
    MAX_PIXELS,
    ImageFault,
    decode_image,
    open_header,
    orientation_of,
    probe_image,
    upright,
)

_COARSE = 64  # pixels that suffice for a fingerprint; JPEGs are decoded at an eighth where that leaves more


def look_at(path: str, fast: bool = False) -> Picture:
    """Return what there is to know about an image; `fast` reads the header only."""
    picture, file = Picture(path), Path(path)
    notes: list[str] = []
    try:
        picture.size_hw = probe_image(file, notes)
        picture.cut = notes[0] if notes else ""
        data = b"" if fast else file.read_bytes()
        with file.open("rb") as head, open_header(file, file, head.read(32), MAX_PIXELS) as header:
            picture.format, picture.orientation = header.format or "", orientation_of(header)
        if fast:
            return picture
        grey = _coarse_jpeg(data, picture) if picture.format in ("JPEG", "MPO") else None
        if grey is None:
            grey = cv2.cvtColor(decode_image(data, file), cv2.COLOR_BGR2GRAY)
        picture.print = fingerprint(data, grey, picture.size_hw)
    except ImageFault as fault:
        picture.fault, picture.size_hw = str(fault), None
    except OSError as error:
        picture.fault, picture.size_hw = f"{path}: cannot be read ({error.strerror or error})", None
    return picture


def _flat_end(grey: np.ndarray) -> float:
    """Return how much of the height, from below, has one level that is neither black nor white.

    That is what decoders make of blocks that are missing: they go on with the last brightness they know.
    """
    last = int(grey[-1, -1])
    rows = np.abs(grey.astype(np.int16) - last).max(axis=1) <= 1
    length = len(rows) if rows.all() else int(rows[::-1].argmin())
    return length / len(rows) if 8 < last < 247 and length < len(rows) else 0.0


def _coarse_jpeg(data: bytes, picture: Picture) -> np.ndarray | None:
    """Return grey pixels at an eighth of the size, None if the file does not give them all.

    Pillow refuses data that end too early, which OpenCV fills with grey.
    """
    path = Path(picture.path)
    with open_header(io.BytesIO(data), path, data[:32], MAX_PIXELS) as image:
        image.draft("L", (_COARSE, _COARSE))
        try:
            pixels = np.asarray(image.convert("L"))
        except (OSError, ValueError, SyntaxError) as error:
            picture.cut = picture.cut or f"{path}: {str(error).splitlines()[0][:120]}"
            return None
    picture.flat_end = _flat_end(pixels)
    return upright(pixels, picture.orientation)
