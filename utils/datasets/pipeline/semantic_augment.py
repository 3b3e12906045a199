"""Changes of size, place and colour of an image with a class per pixel (behaviour.md 12.6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.datasets.labels.semantic_layout import Draws
from utils.ops.warp import pixel_flip, translation_matrix, warp_into

STEP = 32  # long sides are multiples of it
_BELOW_BASE = 4  # steps from the base down to the likeliest long side
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue: ITU-R 601


def long_sides(base: int, low: float, high: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the long sides that may be drawn, (n,) pixels, and their chances, (n,), which add up to 1.

    Multiples of 32 from `low` to `high` times the base, after a normal distribution around four steps below the base.
    """
    first, last = (max(1, math.ceil(base * part / STEP - 1e-9)) for part in (low, high))
    steps = np.arange(first, max(first, last) + 1)
    weights = np.exp(-0.5 * ((steps - (math.ceil(base / STEP) - _BELOW_BASE)) / std) ** 2)
    return steps * STEP, weights / weights.sum()


def scaled_hw(original_hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Return the size of an image whose longer side becomes `long_side`; the shorter one is rounded."""
    longest = max(original_hw)
    height, width = (long_side if side == longest else int(side * long_side / longest + 0.5) for side in original_hw)
    return max(1, height), max(1, width)


@dataclass(frozen=True)
class Placing:
    """How an image is seen: mirrored or not, at which size, and from which pixel on."""

    flip: bool
    size_hw: tuple[int, int]
    left: int
    top: int


def draw_placing(
    rng: np.random.Generator, original_hw: tuple[int, int], crop_hw: tuple[int, int], draws: Draws, base: int
) -> Placing:
    """Return a random placing; what the image does not fill of the crop lies right of it and below."""
    flip = bool(rng.random() < draws.flip)
    sides, chances = long_sides(base, draws.low, draws.high, draws.std)
    height, width = scaled_hw(original_hw, int(rng.choice(sides, p=chances)))
    left, top = rng.random(2)
    room_x, room_y = max(0, width - crop_hw[1]), max(0, height - crop_hw[0])
    return Placing(flip, (height, width), int(left * (room_x + 1)), int(top * (room_y + 1)))


def place_into(
    image: np.ndarray, classes: np.ndarray, placing: Placing, out_image: np.ndarray, out_classes: np.ndarray
) -> None:
    """Write what `placing` shows: the image bilinear on black, its classes nearest on `IGNORED_PIXEL`.

    `image` (H, W, 3) and `classes` (H, W) are of one size, so are `out_image` (h, w, 3) and `out_classes` (h, w). Only
    what is seen is computed, so that large sizes cost no more than small ones.
    """
    height, width = image.shape[:2]
    scale_y, scale_x = placing.size_hw[0] / height, placing.size_hw[1] / width
    resize = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    mirror = pixel_flip(placing.size_hw[1], placing.size_hw[0], placing.flip, False)
    matrix = translation_matrix(-placing.left, -placing.top) @ mirror @ resize
    out_image[:], out_classes[:] = 0, IGNORED_PIXEL
    warp_into(out_image, image, matrix)
    warp_into(out_classes, classes, matrix, nearest=True)


# ----------------------------------------------------------------------------------------------------------------------
# Colour


@dataclass(frozen=True)
class Colours:
    """Factors of brightness, contrast, saturation, a turn of the hue (-0.5 to 0.5), and the order of the four."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)


def draw_colours(rng: np.random.Generator, strengths: tuple[float, float, float, float]) -> Colours:
    """Return random colours: factors up to `strengths` away from 1 (not below 0), in random order."""
    order = tuple(int(place) for place in rng.permutation(4))
    brightness, contrast, saturation = (
        float(rng.uniform(max(0.0, 1 - strength), 1 + strength)) for strength in strengths[:3]
    )
    hue = float(rng.uniform(-strengths[3], strengths[3]))
    return Colours(brightness, contrast, saturation, hue, order)


def change_colours(image: np.ndarray, colours: Colours) -> None:
    """Change the (H, W, 3) uint8 RGB image in place, each of the four steps rounded to bytes."""
    steps = (_brightness, _contrast, _saturation, _hue)
    factors = (colours.brightness, colours.contrast, colours.saturation, colours.hue)
    for place in colours.order:
        if factors[place] != (0.0 if place == 3 else 1.0):
            steps[place](image, factors[place])


def _levels(factor: float, towards: float) -> np.ndarray:
    """Return (256,) uint8: every level mixed with another one."""
    return np.clip(np.arange(256) * factor + (1 - factor) * towards, 0, 255).astype(np.uint8)


def _brightness(image: np.ndarray, factor: float) -> None:
    cv2.LUT(image, _levels(factor, 0.0), dst=image)


def _contrast(image: np.ndarray, factor: float) -> None:
    mean = int(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean() + 0.5)
    cv2.LUT(image, _levels(factor, mean), dst=image)


def _saturation(image: np.ndarray, factor: float) -> None:
    mix = np.eye(3, dtype=np.float32) * np.float32(factor) + np.float32(1 - factor) * _GREY
    cv2.transform(image, mix, dst=image)


def _hue(image: np.ndarray, turn: float) -> None:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turned = (np.arange(256) + int(turn * 255)) % 256
    hue, saturation, value = cv2.split(hsv)
    cv2.merge((cv2.LUT(hue, turned.astype(np.uint8)), saturation, value), dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=image)
