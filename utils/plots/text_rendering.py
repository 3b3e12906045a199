"""Words as coverage masks, in any script, blended into arrays without converting the whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

Colour = tuple[int, int, int]  # blue, green, red


def class_name(names: Sequence[str], index: int) -> str:
    """Return the name of class `index`, or its number when it has none."""
    return names[index] if 0 <= index < len(names) else str(index)


@lru_cache(maxsize=1)
def _font_path() -> Path:
    import matplotlib  # brings the font; the package's top level alone loads in a tenth of a second

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@lru_cache(maxsize=1)
def _known_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_path())).get_charmap())


@lru_cache(maxsize=16)
def _font(size_px: int):
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_path()), size_px)


@lru_cache(maxsize=1024)
def text_mask(text: str, size_px: int) -> np.ndarray:
    """Return how much of each pixel `text` covers: (h, w) uint8, as high for every text of one size.

    DejaVu Sans draws what it knows (Latin, Greek, Cyrillic, Arabic, Hebrew and others); Chinese, Japanese and Korean
    come from the font inside OpenCV 5 where that version is installed.
    """
    text = text.replace("\n", " ")
    if any(ord(character) not in _known_characters() for character in text) and hasattr(cv2, "FontFace"):
        return _mask_by_opencv(text, size_px)
    from PIL import Image, ImageDraw

    font = _font(size_px)
    ascent, descent = font.getmetrics()
    width = max(1, round(font.getlength(text)))
    canvas = Image.new("L", (width + 1, ascent + descent))
    ImageDraw.Draw(canvas).text((0, 0), text, fill=255, font=font)
    return np.asarray(canvas).copy()


def _mask_by_opencv(text: str, size_px: int) -> np.ndarray:
    ascent, descent = _font(size_px).getmetrics()
    face = cv2.FontFace("uni")
    canvas = np.zeros((ascent + descent, (len(text) + 2) * size_px * 2, 3), np.uint8)
    cv2.putText(canvas, text, (0, ascent), (255, 255, 255), face, size_px)
    inked = np.flatnonzero(canvas[:, :, 0].any(axis=0))
    return canvas[:, : int(inked[-1]) + 2 if len(inked) else 1, 0].copy()


def put_text(canvas: np.ndarray, text: str, left_top_xy: tuple[int, int], size_px: int, colour: Colour) -> None:
    """Blend `text` into `canvas` (H, W, 3) uint8, in place; what lies outside is left out."""
    mask = text_mask(text, size_px)
    left, top = left_top_xy
    x1, y1 = max(0, left), max(0, top)
    x2, y2 = min(canvas.shape[1], left + mask.shape[1]), min(canvas.shape[0], top + mask.shape[0])
    if x1 >= x2 or y1 >= y2:
        return
    cover = mask[y1 - top : y2 - top, x1 - left : x2 - left, None].astype(np.float32) / 255
    region = canvas[y1:y2, x1:x2]
    region[:] = np.rint(region + (np.array(colour, np.float32) - region) * cover).astype(np.uint8)
