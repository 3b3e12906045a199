"""`Sample`: one image with all its labels, the unit that augmentation works on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from utils.core.segment_types import PanopticLabels


def no_boxes() -> np.ndarray:
    """Create an empty (0, 4) float32 array."""
    return np.zeros((0, 4), np.float32)


@dataclass
class Sample:
    """An image and its labels. Arrays may be shared with a cache, so no step may write to its input."""

    image: np.ndarray  # (H, W, 3) uint8 BGR, or (H, W, 4): OpenCV warps four channels twice as fast as three
    boxes_xyxy: np.ndarray = field(default_factory=no_boxes)  # (n, 4) float32, pixels
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (n,)
    polygons: list[np.ndarray] = field(default_factory=list)  # n of (k, 2) pixels, k = 0 if unknown; or empty
    semantic: np.ndarray | None = None  # (H, W) uint8 class of each pixel; (h, w) of the original in evaluation
    panoptic: PanopticLabels | None = None  # in evaluation
    label: int | None = None  # class of the whole image, -1 if unlabelled; None: not a classification sample
    boxes_known: bool = True  # False: objects of the image are not labelled with boxes

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]


def concatenate(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Concatenate the objects of samples.

    Returns:
        (N, 4) boxes, (N,) classes and N polygons; the list of polygons is empty if no object has one.
    """
    boxes = np.concatenate([no_boxes(), *(sample.boxes_xyxy for sample in samples)])
    classes = np.concatenate([np.zeros(0, np.float32), *(sample.classes for sample in samples)])
    polygons: list[np.ndarray] = []
    if any(sample.polygons for sample in samples):
        empty = np.zeros((0, 2), np.float32)
        for sample in samples:
            polygons += sample.polygons or [empty] * len(sample.boxes_xyxy)
    return boxes, classes, polygons
