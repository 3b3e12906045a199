"""Colours of semantic classes: those of Cityscapes where its names are used, else colours that differ clearly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

# behaviour.md 12.6, as 0xRRGGBB; multiyolov5's sky is 0x0082B4, the official one 0x4682B4
CITYSCAPES = {
    "road": 0x804080, "sidewalk": 0xF423E8, "building": 0x464646, "wall": 0x66669C, "fence": 0xBE9999,
    "pole": 0x999999, "traffic light": 0xFAAA1E, "traffic sign": 0xDCDC00, "vegetation": 0x6B8E23,
    "terrain": 0x98FB98, "sky": 0x0082B4, "person": 0xDC143C, "rider": 0xFF0000, "car": 0x00008E, "truck": 0x000046,
    "bus": 0x003C64, "train": 0x005064, "motorcycle": 0x0000E6, "bicycle": 0x770B20,
}  # fmt: skip
_STEPS = np.linspace(0, 255, 16).round()  # of red, green and blue, among which colours are looked for
_DARK = 60  # colours whose largest value is not above this look like shadow
_TAKEN = ((0, 0, 0), (255, 255, 255), (114, 114, 114))  # nothing, text and borders look like these


def palette(names: Sequence[str], given: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """Return (C, 3) uint8 RGB, one colour for each of C class names.

    `given` colours, RGB 0 to 255, come first. Classes beyond them have multiyolov5's Cityscapes colours if every name
    is one of Cityscapes', else colours as far as possible from all before them: the same in every run, and those of
    the first classes do not depend on how many follow.
    """
    wanted = [tuple(int(value) for value in colour) for colour in given][: len(names)]
    if any(len(colour) != 3 or not all(0 <= value <= 255 for value in colour) for colour in wanted):
        raise ValueError(f"a colour is three numbers from 0 to 255, got {list(given)}")
    known = [CITYSCAPES.get(" ".join(name.lower().replace("_", " ").split())) for name in names]
    if None not in known:
        usual = [(value >> 16, value >> 8 & 255, value & 255) for value in known if value is not None]
        return np.array([*wanted, *usual[len(wanted) :]], np.uint8).reshape(-1, 3)
    return np.array(_spread(len(names), tuple(wanted)), np.uint8).reshape(-1, 3)


@lru_cache(maxsize=32)
def _spread(count: int, given: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Return `given` and further RGB colours, `count` in all, each the one farthest from all before it in CIELAB."""
    candidates = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS, indexing="ij"), axis=-1).reshape(-1, 3)
    candidates = candidates[candidates.max(axis=1) > _DARK]
    places = _lab(candidates)
    nearest = np.full(len(candidates), np.inf)
    for place in _lab(np.array([*_TAKEN, *given], dtype=np.float64)):
        nearest = np.minimum(nearest, np.linalg.norm(places - place, axis=1))
    colours = list(given)
    while len(colours) < count:
        best = int(nearest.argmax())
        colours.append(tuple(int(value) for value in candidates[best]))
        nearest = np.minimum(nearest, np.linalg.norm(places - places[best], axis=1))
    return tuple(colours)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Return (n, 3) colours of 0 to 255 in CIELAB, where distances are about as large as they look."""
    return cv2.cvtColor((rgb[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0].astype(np.float64)
