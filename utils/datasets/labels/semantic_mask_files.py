"""Reading of mask files: stored values, never colours, and their mapping to classes."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.input_files import MAX_PIXELS
from utils.datasets.image_files import TAIL_BYTES, ImageFault, open_header, read_content
from utils.datasets.labels.semantic_layout import INVALID

_MODE_NAMES = {
    "RGB": "a colour image",
    "RGBA": "a colour image",
    "CMYK": "a colour image",
    "LA": "greyscale with alpha",
    "F": "floating-point values",
}
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH, _PNG_COLOUR_TYPE = 24, 25  # offsets in the IHDR chunk
_EXACT_FLOAT32 = 2**24  # largest count that float32 holds exactly


def read_values(path: Path) -> np.ndarray:
    """Read the values of a mask file; of palette images the indices.

    Args:
        path: mask file.

    Returns:
        (H, W) uint8 values.

    Raises:
        ImageFault: the file is missing, damaged, in colour, of 16 bits, or of a lossy format such as JPEG.
    """
    path = Path(path)
    data = read_content(path, "mask")
    with open_header(io.BytesIO(data), path, data[:32], MAX_PIXELS) as header:
        mode = header.mode
        if header.format in ("JPEG", "MPO", "WEBP"):
            raise ImageFault(f"{path}: {header.format} compression changes class indices; save masks as PNG")
        if mode.startswith("I"):
            raise ImageFault(f"{path}: 16 bits per pixel; a mask has one byte per pixel, the index of its class")
        if mode not in ("1", "L", "P"):
            kind = _MODE_NAMES.get(mode, mode)
            raise ImageFault(f"{path}: {kind} ({mode}); a mask has one byte per pixel, the index of its class")
        if header.format == "PNG" and b"IEND" not in data[-TAIL_BYTES:]:
            raise ImageFault(f"{path}: truncated PNG (no IEND)")
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if mode == "L" else None
        if values is None or values.shape != (header.size[1], header.size[0]) or values.dtype != np.uint8:
            try:
                values = np.array(header, np.uint8)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise ImageFault(f"{path}: damaged mask ({str(error).splitlines()[0][:120]})") from error
    # decoders scale the values of greyscale PNGs with 2 or 4 bits to the whole byte
    bits = data[_PNG_BIT_DEPTH] if data.startswith(_PNG) and data[_PNG_COLOUR_TYPE] == 0 else 8
    return values // (255 // (2**bits - 1)) if bits in (2, 4) else values


def map_classes(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Map stored values to classes.

    Args:
        values: (H, W) uint8.
        table: (256,) class of each value, see `SemanticSplitFiles`.

    Returns:
        (H, W) uint8 classes; invalid values become `IGNORED_PIXEL`.
    """
    return cv2.LUT(values, np.where(table == INVALID, IGNORED_PIXEL, table).astype(np.uint8))


def count_values(values: np.ndarray) -> np.ndarray:
    """Count the pixels of each value, (256,) int64."""
    if values.size < _EXACT_FLOAT32:  # ten times as fast as bincount, but counts in float32
        return cv2.calcHist([values], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(values.ravel(), minlength=256)
