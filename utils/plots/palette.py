"""Colours of semantic classes: Cityscapes' colours for its class names, otherwise colours that differ clearly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

# 0xRRGGBB, as in multiyolov5. They are the official colours except for the sky, officially 0x4682B4.
CITYSCAPES = {
    "road": 0x804080, "sidewalk": 0xF423E8, "building": 0x464646, "wall": 0x66669C, "fence": 0xBE9999,
    "pole": 0x999999, "traffic light": 0xFAAA1E, "traffic sign": 0xDCDC00, "vegetation": 0x6B8E23,
    "terrain": 0x98FB98, "sky": 0x0082B4, "person": 0xDC143C, "rider": 0xFF0000, "car": 0x00008E, "truck": 0x000046,
    "bus": 0x003C64, "train": 0x005064, "motorcycle": 0x0000E6, "bicycle": 0x770B20,
}  # fmt: skip
_LEVELS = np.linspace(0, 255, 16).round()  # of red, green and blue in candidate colours
_MIN_BRIGHTNESS = 60  # the largest component of candidates exceeds it; darker colours resemble shadow
_RESERVED = ((0, 0, 0), (255, 255, 255), (114, 114, 114))  # unlabelled pixels, text and padding


def palette(names: Sequence[str], given: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """Choose a colour for each class.

    Colours of the data set come first. The remaining classes have Cityscapes' colours if all names are classes of
    Cityscapes. Otherwise each has the colour that is farthest from all colours before it, so the colours are
    reproducible and those of the first classes do not depend on the number of classes.

    Args:
        names: Names of C classes.
        given: RGB colours of the first classes, 0 to 255.

    Returns:
        (C, 3) uint8 RGB.

    Raises:
        ValueError: If a given colour is not three numbers from 0 to 255.
    """
    first = [tuple(int(value) for value in colour) for colour in given][: len(names)]
    if any(len(colour) != 3 or not all(0 <= value <= 255 for value in colour) for colour in first):
        raise ValueError(f"colours must be three numbers from 0 to 255, got {list(given)}")
    known = [CITYSCAPES.get(" ".join(name.lower().replace("_", " ").split())) for name in names]
    if None not in known:
        cityscapes = [(value >> 16, value >> 8 & 255, value & 255) for value in known if value is not None]
        return np.array([*first, *cityscapes[len(first) :]], np.uint8).reshape(-1, 3)
    return np.array(_distinct_colours(len(names), tuple(first)), np.uint8).reshape(-1, 3)


@lru_cache(maxsize=32)
def _distinct_colours(count: int, given: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Extend the given RGB colours to `count`, each new one the farthest from all before it in CIELAB."""
    candidates = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    candidates = candidates[candidates.max(axis=1) > _MIN_BRIGHTNESS]
    candidates_lab = _rgb_to_lab(candidates)
    distance = np.full(len(candidates), np.inf)  # to the nearest colour in use
    for colour_lab in _rgb_to_lab(np.array([*_RESERVED, *given], dtype=np.float64)):
        distance = np.minimum(distance, np.linalg.norm(candidates_lab - colour_lab, axis=1))
    colours = list(given)
    while len(colours) < count:
        best = int(distance.argmax())
        colours.append(tuple(int(value) for value in candidates[best]))
        distance = np.minimum(distance, np.linalg.norm(candidates_lab - candidates_lab[best], axis=1))
    return tuple(colours)


def _rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert (n, 3) RGB colours, 0 to 255, to CIELAB, whose distances approximate perceived differences."""
    return cv2.cvtColor((rgb[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0].astype(np.float64)
