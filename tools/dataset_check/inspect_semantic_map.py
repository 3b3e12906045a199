"""Inspection of one semantic map: validity, and agreement with the boxes of its image."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from tools.dataset_check.records import ImageRecord, SemanticRecord
from utils.core.contracts import IGNORED_PIXEL
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.semantic_mask_files import count_values, map_classes
from utils.datasets.labels.semantic_scan import find_value_fault
from utils.datasets.labels.yolo_lines import ImageLabels

_MIN_LABELLED_FRACTION = 0.5  # of a box's pixels; with fewer, the absence of its class means nothing
_MIN_BOX_PX = 64  # area; smaller boxes may fall between the pixels of a map
_MIN_REGION_FRACTION = 0.01  # of the image; smaller regions without a box are not reported
_MIN_COVERED_FRACTION = 0.1  # of a region by boxes of its class


def inspect_semantic_map(
    image: ImageRecord,
    mask: str,
    read: Callable[[], np.ndarray],
    table: np.ndarray,
    num_classes: int,
    boxes: ImageLabels | None,
    semantic_classes: list[int],
) -> SemanticRecord:
    """Inspect the semantic map of an image and compare it with the image's boxes.

    Args:
        image: The inspected image.
        mask: Path of the map.
        read: Reads the (H, W) values of the map; raises ImageFault.
        table: (256,) class of each value of the map.
        num_classes: Number of semantic classes.
        boxes: Boxes of the image; None: no comparison.
        semantic_classes: Semantic class of each box class, -1 for none.

    Returns:
        The record of the map.
    """
    mapped = SemanticRecord(image, mask, table)
    try:
        values = read()
    except ImageFault as fault:
        mapped.fault = str(fault)
        return mapped
    fault_text = find_value_fault(values, table, num_classes)
    if image.size_hw is not None and values.shape != image.size_hw:
        (height, width), (h, w) = values.shape, image.size_hw
        fault_text = f"{width} x {height} pixels, but its image {image.path} has {w} x {h}"
    if fault_text:
        mapped.fault = f"{mask}: {fault_text}"
        return mapped
    classes = map_classes(values, table)
    mapped.counts = count_values(classes)[:num_classes]
    if boxes is not None:
        known = np.array(
            [semantic_classes[int(c)] if int(c) < len(semantic_classes) else -1 for c in boxes.boxes[:, 0]], np.int64
        )
        mapped.absent_boxes = _find_absent_boxes(classes, boxes.boxes, known)
        mapped.unboxed_regions = _find_unboxed_regions(
            classes, boxes.boxes, known, {number for number in semantic_classes if number >= 0}
        )
    return mapped


def _corners(boxes: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    """Convert (n, 5) labels to (n, 4) integer corners x1, y1, x2, y2 inside the image, at least one pixel each."""
    size = np.array([size_hw[1], size_hw[0]])
    low = np.clip(np.floor((boxes[:, 1:3] - boxes[:, 3:5] / 2) * size), 0, size - 1)
    high = np.clip(np.ceil((boxes[:, 1:3] + boxes[:, 3:5] / 2) * size), low + 1, size)
    return np.concatenate((low, high), 1).astype(np.int64)


def _find_absent_boxes(classes: np.ndarray, boxes: np.ndarray, known: np.ndarray) -> list[int]:
    """Find boxes whose class has no pixel inside them although most of their pixels are labelled."""
    found = []
    for row, (x1, y1, x2, y2) in enumerate(_corners(boxes, classes.shape)):
        inside = classes[y1:y2, x1:x2]
        if known[row] < 0 or inside.size < _MIN_BOX_PX:
            continue
        labelled = np.count_nonzero(inside != IGNORED_PIXEL)
        if labelled >= _MIN_LABELLED_FRACTION * inside.size and not (inside == known[row]).any():
            found.append(row)
    return found


def _find_unboxed_regions(
    classes: np.ndarray, boxes: np.ndarray, known: np.ndarray, things: set[int]
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Find large regions of box classes that no box of their class covers."""
    found = []
    corners = _corners(boxes, classes.shape)
    height, width = classes.shape
    for number in sorted(things & set(np.unique(classes).tolist())):
        regions = (classes == number).astype(np.uint8)
        covered = np.zeros_like(regions)
        for x1, y1, x2, y2 in corners[known == number]:
            covered[y1:y2, x1:x2] = 1
        count, labels, stats, _ = cv2.connectedComponentsWithStats(regions, connectivity=8)
        inside = np.bincount(labels.ravel(), covered.ravel(), count)
        for region in range(1, count):
            x, y, w, h, area = (int(value) for value in stats[region])
            if area >= _MIN_REGION_FRACTION * regions.size and inside[region] < _MIN_COVERED_FRACTION * area:
                region_box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                found.append((number, region_box))
    return found
