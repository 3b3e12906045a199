"""Augmentation of one composed sample: colour, copy-paste, MixUp; see docs/reference/augmentation.md."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from utils.core.log import LOGGER
from utils.datasets.pipeline.sample import Sample, concatenate

MIXUP_BETA = 32.0  # both parameters of the beta distribution of MixUp fractions
_MAX_PASTE_OVERLAP = 0.30
_OPTIONAL = ("Blur", "MedianBlur", "ToGray", "CLAHE")  # transforms of albumentations
_OPTIONAL_PROBABILITY = 0.01


def hsv_tables(gains: np.ndarray) -> list[np.ndarray]:
    """Build the (256,) uint8 lookup tables that multiply hue (modulo 180), saturation and value by `gains`."""
    levels = np.arange(256, dtype=np.float64)
    values = ((levels * gains[0]) % 180, *(np.clip(levels * gain, 0, 255) for gain in gains[1:]))
    return [value.astype(np.uint8) for value in values]


def write_rgb(image: np.ndarray, out_rgb: np.ndarray, gains: np.ndarray | None) -> None:
    """Convert an image to RGB, optionally with changed colours.

    Args:
        image: (H, W, 3) BGR or (H, W, 4) BGRA uint8.
        out_rgb: (H, W, 3) uint8, overwritten.
        gains: factors of hue, saturation and value; None: unchanged.
    """
    if gains is None:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB, dst=out_rgb)
        return
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    # one table per channel: a single table for three channels is 25 % slower
    changed = [cv2.LUT(channel, table) for channel, table in zip(cv2.split(hsv), hsv_tables(gains), strict=True)]
    cv2.merge(changed, dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=out_rgb)


def mixup(first: Sample, second: Sample, fraction: float) -> Sample:
    """Blend two samples (MixUp, Zhang et al. 2018) and keep the boxes of both with full weight.

    Args:
        first: sample with weight `fraction`.
        second: sample of the same size, with the rest of the weight.
        fraction: weight from 0 to 1; the semantic map is that of the sample with the larger weight.
    """
    boxes, classes, polygons = concatenate([first, second])
    image = cv2.addWeighted(first.image, fraction, second.image, 1 - fraction, 0)
    return Sample(image, boxes, classes, polygons, first.semantic if fraction >= 0.5 else second.semantic)


def copy_paste(sample: Sample, fraction: float, rng: np.random.Generator) -> Sample:
    """Paste mirrored copies of objects (after Copy-Paste, Ghiasi et al. 2021).

    Args:
        sample: sample whose objects with polygons may be copied.
        fraction: fraction of these objects that is drawn; a copy is pasted if its box covers less than 30 % of the box
            of every object and earlier copy.
        rng: random numbers.
    """
    candidates = [row for row, polygon in enumerate(sample.polygons) if len(polygon) >= 3]
    count = round(fraction * len(candidates))
    if count == 0:
        return sample
    height, width = sample.size_hw
    boxes, classes, polygons = list(sample.boxes_xyxy), list(sample.classes), list(sample.polygons)
    mask = np.zeros((height, width), np.uint8)
    for row in rng.choice(candidates, count, replace=False):
        left, top, right, bottom = sample.boxes_xyxy[row]
        mirrored = np.array([width - right, top, width - left, bottom], np.float32)
        if (covered_fractions(mirrored, np.stack(boxes)) >= _MAX_PASTE_OVERLAP).any():
            continue
        outline = sample.polygons[row] * (-1, 1) + (width, 0)
        boxes.append(mirrored)
        classes.append(sample.classes[row])
        polygons.append(outline.astype(np.float32))
        cv2.drawContours(mask, [outline.astype(np.int32)], -1, 255, cv2.FILLED)
    if len(boxes) == len(sample.boxes_xyxy):
        return sample
    image = cv2.copyTo(cv2.flip(sample.image, 1), mask, sample.image.copy())
    semantic = sample.semantic
    if semantic is not None:
        semantic = cv2.copyTo(cv2.flip(semantic, 1), mask, semantic.copy())
    return Sample(image, np.stack(boxes), np.array(classes, np.float32), polygons, semantic)


def covered_fractions(box_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Compute the fraction of each of (n, 4) boxes that one (4,) box covers, (n,)."""
    low = np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    high = np.minimum(box_xyxy[2:], others_xyxy[:, 2:])
    intersection = (high - low).clip(0).prod(1)
    return intersection / ((others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(1) + 1e-16)


@lru_cache(maxsize=1)
def optional_transforms() -> tuple[Any, ...]:
    """Create the optional transforms of albumentations; none if it is not installed."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for updates online
    try:
        import albumentations
    except ImportError:
        return ()
    try:
        return tuple(getattr(albumentations, name)(p=1.0) for name in _OPTIONAL)
    except (AttributeError, ValueError, TypeError) as error:
        LOGGER.warning(f"albumentations is not used: incompatible version ({error})")
        return ()


def apply_optional(image: np.ndarray, transforms: tuple[Any, ...], rng: np.random.Generator) -> np.ndarray:
    """Apply each transform with a probability of 1 %, seeded by `rng`."""
    for transform in transforms:
        if rng.random() < _OPTIONAL_PROBABILITY:
            transform.set_random_seed(int(rng.integers(2**31)))
            image = transform(image=np.ascontiguousarray(image[..., :3]))["image"]
    return image
