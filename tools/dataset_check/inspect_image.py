"""Inspection of one image file: readability, completeness, orientation and fingerprint."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np

from tools.dataset_check.image_hash import compute_fingerprint
from tools.dataset_check.records import ImageRecord
from utils.datasets.file_access import open_binary, read_binary
from utils.datasets.image_files import (
    MAX_PIXELS,
    ImageFault,
    decode_image,
    open_header,
    orientation_of,
    probe_image,
    upright,
)

_DRAFT_SIDE = 64  # pixels sufficient for a fingerprint; larger JPEGs are decoded at up to an eighth of their size


def inspect_image(path: str, fast: bool = False) -> ImageRecord:
    """Inspect an image file; `fast` reads its header only."""
    record, file = ImageRecord(path), Path(path)
    notes: list[str] = []
    try:
        record.size_hw = probe_image(file, notes)
        record.truncation = notes[0] if notes else ""
        data = b"" if fast else read_binary(file)
        with open_binary(file) as opened:
            head = opened.read(32)
            opened.seek(0)
            with open_header(opened, file, head, MAX_PIXELS) as header:
                record.format, record.orientation = header.format or "", orientation_of(header)
        if fast:
            return record
        grey = _decode_reduced_jpeg(data, record) if record.format in ("JPEG", "MPO") else None
        if grey is None:
            grey = cv2.cvtColor(decode_image(data, file), cv2.COLOR_BGR2GRAY)
        record.fingerprint = compute_fingerprint(data, grey, record.size_hw)
    except ImageFault as fault:
        record.fault, record.size_hw = str(fault), None
    except OSError as error:
        record.fault, record.size_hw = f"{path}: cannot be read ({error.strerror or error})", None
    return record


def _flat_end(grey: np.ndarray) -> float:
    """Measure the fraction of the height, from below, with a single level that is neither black nor white.

    Decoders fill missing blocks with the last brightness they know.
    """
    last = int(grey[-1, -1])
    rows = np.abs(grey.astype(np.int16) - last).max(axis=1) <= 1
    length = len(rows) if rows.all() else int(rows[::-1].argmin())
    return length / len(rows) if 8 < last < 247 and length < len(rows) else 0.0


def _decode_reduced_jpeg(data: bytes, record: ImageRecord) -> np.ndarray | None:
    """Decode grey pixels at a reduced size; None for a truncated file.

    Pillow rejects truncated data, which OpenCV would fill with grey.
    """
    path = Path(record.path)
    with open_header(io.BytesIO(data), path, data[:32], MAX_PIXELS) as image:
        image.draft("L", (_DRAFT_SIDE, _DRAFT_SIDE))
        try:
            pixels = np.asarray(image.convert("L"))
        except (OSError, ValueError, SyntaxError) as error:
            record.truncation = record.truncation or f"{path}: {str(error).splitlines()[0][:120]}"
            return None
    record.flat_end = _flat_end(pixels)
    return upright(pixels, record.orientation)
