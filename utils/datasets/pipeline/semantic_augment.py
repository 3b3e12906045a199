"""Augmentation of images with semantic maps: random size, crop, flip and colour; see docs/reference/semantic.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.datasets.labels.semantic_layout import SemanticAugment
from utils.datasets.pipeline.sample import Sample
from utils.ops.warp import pixel_flip, translation_matrix, warp_into

STEP = 32  # long sides are multiples of it
_STEPS_BELOW_BASE = 4  # from the base down to the most likely long side
_GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601
_HUE = 3  # index of the hue in `ColourJitter.order`


def long_side_distribution(base: int, low: float, high: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the distribution of the long side in training.

    Args:
        base: reference size in pixels; the most likely long side is four steps of 32 pixels below it.
        low: shortest long side, as a fraction of `base`.
        high: longest long side.
        std: standard deviation in steps.

    Returns:
        (n,) long sides in pixels, multiples of 32, and their (n,) probabilities.
    """
    first, last = (max(1, math.ceil(base * part / STEP - 1e-9)) for part in (low, high))
    steps = np.arange(first, max(first, last) + 1)
    weights = np.exp(-0.5 * ((steps - (math.ceil(base / STEP) - _STEPS_BELOW_BASE)) / std) ** 2)
    return steps * STEP, weights / weights.sum()


def scaled_hw(original_hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Compute the size of an image whose long side becomes `long_side`; the short side is rounded."""
    longest = max(original_hw)
    height, width = (long_side if side == longest else int(side * long_side / longest + 0.5) for side in original_hw)
    return max(1, height), max(1, width)


@dataclass(frozen=True)
class RandomCrop:
    """A crop of the resized and optionally mirrored image, from pixel (left, top) on."""

    flip: bool
    size_hw: tuple[int, int]  # of the resized image
    left: int
    top: int


def draw_crop(
    rng: np.random.Generator,
    original_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    augment: SemanticAugment,
    base: int,
) -> RandomCrop:
    """Draw the parameters of a random crop; an image smaller than the crop is padded on the right and below."""
    flip = bool(rng.random() < augment.flip)
    sides, probabilities = long_side_distribution(base, augment.low, augment.high, augment.std)
    height, width = scaled_hw(original_hw, int(rng.choice(sides, p=probabilities)))
    left, top = rng.random(2)
    room_x, room_y = max(0, width - crop_hw[1]), max(0, height - crop_hw[0])
    return RandomCrop(flip, (height, width), int(left * (room_x + 1)), int(top * (room_y + 1)))


def crop_into(sample: Sample, crop: RandomCrop, out_image: np.ndarray, out_semantic: np.ndarray) -> None:
    """Apply a random crop; only visible pixels are computed, so that large sizes cost no more than small ones.

    Args:
        sample: (H, W, 3) image and (H, W) map.
        crop: parameters.
        out_image: (h, w, 3) uint8, overwritten: bilinear, with black padding.
        out_semantic: (h, w) uint8, overwritten: nearest neighbour, padded with `IGNORED_PIXEL`.
    """
    assert sample.semantic is not None
    height, width = sample.size_hw
    scale_y, scale_x = crop.size_hw[0] / height, crop.size_hw[1] / width
    resize = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    mirror = pixel_flip(crop.size_hw[1], crop.size_hw[0], crop.flip, False)
    matrix = translation_matrix(-crop.left, -crop.top) @ mirror @ resize
    out_image[:], out_semantic[:] = 0, IGNORED_PIXEL
    warp_into(out_image, sample.image, matrix)
    warp_into(out_semantic, sample.semantic, matrix, nearest=True)


# ----------------------------------------------------------------------------------------------------------------------
# Colour


@dataclass(frozen=True)
class ColourJitter:
    """Factors of brightness, contrast and saturation, a hue rotation from -0.5 to 0.5, and the order of the four."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)


def draw_jitter(rng: np.random.Generator, strengths: tuple[float, float, float, float]) -> ColourJitter:
    """Draw factors that differ from 1 by up to `strengths` (at least 0), the hue from 0, in random order."""
    order = tuple(int(step) for step in rng.permutation(4))
    brightness, contrast, saturation = (
        float(rng.uniform(max(0.0, 1 - strength), 1 + strength)) for strength in strengths[:3]
    )
    hue = float(rng.uniform(-strengths[_HUE], strengths[_HUE]))
    return ColourJitter(brightness, contrast, saturation, hue, order)


def apply_jitter(image: np.ndarray, jitter: ColourJitter) -> None:
    """Change the colours of an (H, W, 3) uint8 RGB image in place; each step rounds to bytes."""
    steps = (_brightness, _contrast, _saturation, _hue)
    factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    for step in jitter.order:
        if factors[step] != (0.0 if step == _HUE else 1.0):
            steps[step](image, factors[step])


def _blend_table(factor: float, other: float) -> np.ndarray:
    """Build the (256,) uint8 table that blends every level with another one."""
    return np.clip(np.arange(256) * factor + (1 - factor) * other, 0, 255).astype(np.uint8)


def _brightness(image: np.ndarray, factor: float) -> None:
    cv2.LUT(image, _blend_table(factor, 0.0), dst=image)


def _contrast(image: np.ndarray, factor: float) -> None:
    mean = int(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean() + 0.5)
    cv2.LUT(image, _blend_table(factor, mean), dst=image)


def _saturation(image: np.ndarray, factor: float) -> None:
    matrix = np.eye(3, dtype=np.float32) * np.float32(factor) + np.float32(1 - factor) * _GREY_WEIGHTS
    cv2.transform(image, matrix, dst=image)


def _hue(image: np.ndarray, rotation: float) -> None:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    table = (np.arange(256) + int(rotation * 255)) % 256
    hue, saturation, value = cv2.split(hsv)
    cv2.merge((cv2.LUT(hue, table.astype(np.uint8)), saturation, value), dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=image)
