"""Squares and boxes cut out of images, as networks for whole-image classes see them (behaviour.md 4.12)."""

from __future__ import annotations

import math

import cv2
import numpy as np

from utils.core.contracts import Geometry

_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)


def centre_crop(image: np.ndarray, new_hw: tuple[int, int]) -> tuple[np.ndarray, Geometry]:
    """Return the middle square of an (H, W, 3) image, bilinearly resize to `new_hw`, and the geometry."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    scale_xy = (new_hw[1] / side, new_hw[0] / side)
    geometry = Geometry((height, width), new_hw, scale_xy, (-left * scale_xy[0], -top * scale_xy[1]))
    return resize(image[top : top + side, left : left + side], new_hw), geometry


def resize(image: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """Return the image bilinearly resize to `new_hw`; the same array if it has that size."""
    if image.shape[:2] == new_hw:
        return image
    return cv2.resize(image, new_hw[::-1], interpolation=cv2.INTER_LINEAR)


def random_resized_area(rng: np.random.Generator, hw: tuple[int, int], least: float) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part of an image of `hw` pixels.

    Its area is `least` to all of the image's, its width / height 3/4 to 4/3 (Szegedy et al. 2015, section 6); where ten
    draws do not fit, the largest middle part of such a shape.
    """
    height, width = hw
    for _ in range(_TRIES):
        area = height * width * rng.uniform(least, 1.0)
        aspect = math.exp(rng.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
        part_w, part_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_w <= width and 0 < part_h <= height:
            top, left = int(rng.integers(0, height - part_h + 1)), int(rng.integers(0, width - part_w + 1))
            return top, left, part_h, part_w
    aspect = min(max(width / height, _ASPECTS[0]), _ASPECTS[1])
    part_w, part_h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    return (height - part_h) // 2, (width - part_w) // 2, part_h, part_w


def colour_jitter(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Return the (H, W, 3) uint8 BGR image with brightness, contrast and saturation changed in random order.

    Each is multiplied by its own factor from 1 - share to 1 + share: pixels are moved away from, or towards, black, the
    image's mean grey, and their own grey (weights of Rec. 601).
    """
    factors = rng.uniform(1 - share, 1 + share, 3)
    levels = np.arange(256, dtype=np.float32)
    for kind in rng.permutation(3):
        factor = float(factors[kind])
        if kind == 2:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
            image = cv2.addWeighted(image, factor, grey, 1 - factor, 0)
            continue
        middle = float(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean()) if kind == 1 else 0.0
        table = (levels * factor + middle * (1 - factor)).round().clip(0, 255).astype(np.uint8)
        image = cv2.LUT(image, table)
    return image
