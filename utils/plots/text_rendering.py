"""Text in any script, rendered to coverage masks and blended into images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]  # blue, green, red


def class_name(names: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number if it has none."""
    return names[index] if 0 <= index < len(names) else str(index)


@lru_cache(maxsize=1)
def _font_path() -> Path:
    """Find the font that matplotlib contains, without importing it if it is in the usual place."""
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return path
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@lru_cache(maxsize=1)
def _supported_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_path())).get_charmap())


@lru_cache(maxsize=16)
def _font(size_px: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_path()), size_px)


@lru_cache(maxsize=1024)
def text_mask(text: str, size_px: int) -> np.ndarray:
    """Render text.

    DejaVu Sans covers Latin, Greek, Cyrillic, Arabic, Hebrew and other scripts. Text with other characters, such as
    Chinese, Japanese and Korean, is rendered by the font of OpenCV 5 where that version is installed.

    Args:
        text: Text; line breaks are replaced by spaces.
        size_px: Font size.

    Returns:
        (h, w) uint8 coverage, 0 to 255; h depends on the font size only.
    """
    text = text.replace("\n", " ")
    if not text.isascii() and hasattr(cv2, "FontFace") and not _supported_characters().issuperset(map(ord, text)):
        return _opencv_text_mask(text, size_px)
    from PIL import Image, ImageDraw

    font = _font(size_px)
    ascent, descent = font.getmetrics()
    width = max(1, round(font.getlength(text)))
    canvas = Image.new("L", (width + 1, ascent + descent))
    ImageDraw.Draw(canvas).text((0, 0), text, fill=255, font=font)
    return np.asarray(canvas).copy()


def _opencv_text_mask(text: str, size_px: int) -> np.ndarray:
    ascent, descent = _font(size_px).getmetrics()
    face = cv2.FontFace("uni")
    canvas = np.zeros((ascent + descent, (len(text) + 2) * size_px * 2, 3), np.uint8)
    cv2.putText(canvas, text, (0, ascent), (255, 255, 255), face, size_px)
    inked = np.flatnonzero(canvas[:, :, 0].any(axis=0))
    return canvas[:, : int(inked[-1]) + 2 if len(inked) else 1, 0].copy()


def put_text(canvas: np.ndarray, text: str, left_top_xy: tuple[int, int], size_px: int, colour: Colour) -> None:
    """Blend text into an image; parts outside the image are cut off.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        text: Text.
        left_top_xy: Position of its upper left corner.
        size_px: Font size.
        colour: Text colour.
    """
    put_mask(canvas, text_mask(text, size_px), left_top_xy, colour)


def put_mask(canvas: np.ndarray, mask: np.ndarray, left_top_xy: tuple[int, int], colour: Colour) -> None:
    """Blend a colour into an image where a mask covers it; parts outside the image are cut off.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        mask: (h, w) uint8 coverage, 0 to 255.
        left_top_xy: Position of its upper left corner.
        colour: The colour.
    """
    left, top = left_top_xy
    x1, y1 = max(0, left), max(0, top)
    x2, y2 = min(canvas.shape[1], left + mask.shape[1]), min(canvas.shape[0], top + mask.shape[0])
    if x1 >= x2 or y1 >= y2:
        return
    coverage = mask[y1 - top : y2 - top, x1 - left : x2 - left, None].astype(np.float32) / 255
    region = canvas[y1:y2, x1:x2]
    region[:] = np.rint(region + (np.array(colour, np.float32) - region) * coverage).astype(np.uint8)
