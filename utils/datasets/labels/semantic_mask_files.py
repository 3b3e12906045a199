"""Mask files to class numbers: values as they are stored, never as colours."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.datasets.image_files import MAX_PIXELS, ImageFault, open_header
from utils.datasets.labels.semantic_layout import OUTSIDE

_KINDS = {"RGB": "a colour picture", "RGBA": "a colour picture", "CMYK": "a colour picture", "LA": "grey with alpha",
          "F": "numbers with fractions"}  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"


def read_values(path: Path) -> np.ndarray:
    """Return the (H, W) uint8 values of a mask file: of a palette image the indices, not the colours.

    ImageFault: no such file, damaged, in colour, of 16 bits, or of a format that changes values (JPEG).
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageFault(f"{path}: no such mask") from error
    except OSError as error:
        raise ImageFault(f"{path}: cannot be read ({error.strerror or error})") from error
    with open_header(io.BytesIO(data), path, data[:32], MAX_PIXELS) as header:
        mode = header.mode
        if header.format in ("JPEG", "MPO", "WEBP"):
            raise ImageFault(f"{path}: {header.format} changes the numbers of classes; save masks as PNG")
        if mode.startswith("I"):
            raise ImageFault(f"{path}: 16 bits per pixel; a mask has one byte per pixel, the number of its class")
        if mode not in ("1", "L", "P"):
            raise ImageFault(
                f"{path}: {_KINDS.get(mode, mode)} ({mode}); a mask has one byte per pixel, the number of its class"
            )
        if header.format == "PNG" and b"IEND" not in data[-4096:]:
            raise ImageFault(f"{path}: PNG cut short (no IEND)")
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if mode == "L" else None
        if values is None or values.shape != (header.size[1], header.size[0]) or values.dtype != np.uint8:
            try:
                values = np.array(header, np.uint8)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise ImageFault(f"{path}: damaged mask ({str(error).splitlines()[0][:120]})") from error
    # decoders spread the values of PNGs with 2 or 4 bits of grey over the whole byte
    bits = data[24] if data.startswith(_PNG) and data[25] == 0 else 8
    return values // (255 // (2**bits - 1)) if bits in (2, 4) else values


def class_numbers(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the (H, W) uint8 classes of stored values by a (256,) table; what it does not know has no label."""
    known = np.where(table == OUTSIDE, IGNORED_PIXEL, table).astype(np.uint8)
    return cv2.LUT(values, known)


def count_values(values: np.ndarray) -> np.ndarray:
    """Return (256,) int64 pixels of each value."""
    if values.size < 2**24:  # up to here the float32 counts are exact, ten times as fast
        return cv2.calcHist([values], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(values.ravel(), minlength=256)
