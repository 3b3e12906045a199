"""Centre crop, random resized crop and colour jitter for image classification."""

from __future__ import annotations

import math

import cv2
import numpy as np

from utils.core.contracts import Geometry

_MAX_TRIES = 10
_ASPECT_RATIOS = (3 / 4, 4 / 3)  # range of width / height


def centre_crop(image: np.ndarray, new_hw: tuple[int, int]) -> tuple[np.ndarray, Geometry]:
    """Crop the central square of an image and resize it bilinearly.

    Args:
        image: (H, W, 3) uint8.
        new_hw: Height and width of the result.

    Returns:
        The crop, and the transform from the image to it, with negative padding.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    scale_xy = (new_hw[1] / side, new_hw[0] / side)
    geometry = Geometry((height, width), new_hw, scale_xy, (-left * scale_xy[0], -top * scale_xy[1]))
    return resize(image[top : top + side, left : left + side], new_hw), geometry


def resize(image: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """Resize an image bilinearly to (height, width); returns the argument if it already has that size."""
    if image.shape[:2] == new_hw:
        return image
    return cv2.resize(image, new_hw[::-1], interpolation=cv2.INTER_LINEAR)


def random_resized_area(
    rng: np.random.Generator, hw: tuple[int, int], min_area_ratio: float
) -> tuple[int, int, int, int]:
    """Draw the area of a random resized crop (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    The area is uniform between `min_area_ratio` and 1 times that of the image, the aspect ratio log-uniform between 3/4
    and 4/3. If ten draws do not fit into the image, the largest central crop with an aspect ratio in this range is
    returned.

    Args:
        rng: Random generator.
        hw: Height and width of the image.
        min_area_ratio: Minimum area relative to that of the image.

    Returns:
        Top, left, height and width in pixels.
    """
    height, width = hw
    for _ in range(_MAX_TRIES):
        area = height * width * rng.uniform(min_area_ratio, 1.0)
        aspect = math.exp(rng.uniform(math.log(_ASPECT_RATIOS[0]), math.log(_ASPECT_RATIOS[1])))
        crop_w, crop_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            top, left = int(rng.integers(0, height - crop_h + 1)), int(rng.integers(0, width - crop_w + 1))
            return top, left, crop_h, crop_w
    aspect = min(max(width / height, _ASPECT_RATIOS[0]), _ASPECT_RATIOS[1])
    crop_w, crop_h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


def colour_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change brightness, contrast and saturation in random order.

    Each is scaled by its own factor from U(1 - strength, 1 + strength), relative to black, to the mean grey level of
    the image and to the grey level of each pixel (Rec. 601 luma).

    Args:
        image: (H, W, 3) uint8 BGR.
        rng: Random generator.
        strength: Maximum change.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    levels = np.arange(256, dtype=np.float32)
    for operation in rng.permutation(3):  # 0: brightness, 1: contrast, 2: saturation
        factor = float(factors[operation])
        if operation == 2:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
            image = cv2.addWeighted(image, factor, grey, 1 - factor, 0)
            continue
        reference = float(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean()) if operation == 1 else 0.0
        table = (levels * factor + reference * (1 - factor)).round().clip(0, 255).astype(np.uint8)
        image = cv2.LUT(image, table)
    return image
