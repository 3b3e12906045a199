"""Changes to one finished sample: colour, pasted objects, blending (behaviour.md 4.8)."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from utils.core.log import LOGGER
from utils.datasets.pipeline.sample import Sample, concatenate

MIXUP_BETA = 32.0
_MAX_PASTE_OVERLAP = 0.30
_OPTIONAL = ("Blur", "MedianBlur", "ToGray", "CLAHE")
_OPTIONAL_CHANCE = 0.01


def hsv_tables(gains: np.ndarray) -> list[np.ndarray]:
    """Return the (256,) uint8 lookup tables that multiply hue (modulo 180), saturation and value by `gains`."""
    levels = np.arange(256, dtype=np.float64)
    values = ((levels * gains[0]) % 180, *(np.clip(levels * gain, 0, 255) for gain in gains[1:]))
    return [value.astype(np.uint8) for value in values]


def write_rgb(image: np.ndarray, out_rgb: np.ndarray, gains: np.ndarray | None) -> None:
    """Write the BGR or BGRA image into `out_rgb` (H, W, 3); hue, saturation, value times `gains` if given."""
    if gains is None:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB, dst=out_rgb)
        return
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    # channel by channel: one table for all three at once takes a quarter longer
    changed = [cv2.LUT(channel, table) for channel, table in zip(cv2.split(hsv), hsv_tables(gains), strict=True)]
    cv2.merge(changed, dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=out_rgb)


def mixup(first: Sample, second: Sample, share: float) -> Sample:
    """Return `share` of the first image and the rest of the second, with the labels of both, unweighted."""
    boxes, classes, polygons = concatenate([first, second])
    image = cv2.addWeighted(first.image, share, second.image, 1 - share, 0)
    return Sample(image, boxes, classes, polygons, first.semantic if share >= 0.5 else second.semantic)


def copy_paste(sample: Sample, share: float, rng: np.random.Generator) -> Sample:
    """Return the sample with mirrored copies of `share` of its objects, where they hide little of any other.

    Needs polygons. A copy is pasted if its mirrored box covers less than 30 % of every box, of earlier copies too.
    """
    candidates = [row for row, polygon in enumerate(sample.polygons) if len(polygon) >= 3]
    count = round(share * len(candidates))
    if count == 0:
        return sample
    height, width = sample.size_hw
    boxes, classes, polygons = list(sample.boxes_xyxy), list(sample.classes), list(sample.polygons)
    mask = np.zeros((height, width), np.uint8)
    for row in rng.choice(candidates, count, replace=False):
        left, top, right, bottom = sample.boxes_xyxy[row]
        mirrored = np.array([width - right, top, width - left, bottom], np.float32)
        if (share_covered(mirrored, np.stack(boxes)) >= _MAX_PASTE_OVERLAP).any():
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


def share_covered(box_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Return (n,) how much of each other box one box covers."""
    low = np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    high = np.minimum(box_xyxy[2:], others_xyxy[:, 2:])
    shared = (high - low).clip(0).prod(1)
    return shared / ((others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(1) + 1e-16)


@lru_cache(maxsize=1)
def optional_transforms() -> tuple[Any, ...]:
    """Return the albumentations package's rare changes of pixels, none where it is not installed."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    try:
        import albumentations
    except ImportError:
        return ()
    try:
        return tuple(getattr(albumentations, name)(p=1.0) for name in _OPTIONAL)
    except (AttributeError, ValueError, TypeError) as error:
        LOGGER.warning(f"albumentations is left out: this version does not fit ({error})")
        return ()


def rarely_changed(image: np.ndarray, transforms: tuple[Any, ...], rng: np.random.Generator) -> np.ndarray:
    """Return the image after each of the transforms with a chance of 1 %, seeded by `rng`."""
    for transform in transforms:
        if rng.random() < _OPTIONAL_CHANCE:
            transform.set_random_seed(int(rng.integers(2**31)))
            image = transform(image=np.ascontiguousarray(image[..., :3]))["image"]
    return image
