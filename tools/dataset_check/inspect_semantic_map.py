"""One class map: can it be used, and does it show what the boxes of its image say."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tools.dataset_check.records import Mapped, Picture
from utils.core.contracts import IGNORED_PIXEL
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.semantic_mask_files import map_classes, count_values, read_values
from utils.datasets.labels.semantic_scan import find_value_fault
from utils.datasets.labels.yolo_lines import ImageLabels

_LABELLED_SHARE = 0.5  # of a box's pixels that must have a class before its absence says anything
_MIN_BOX_PX = 64  # smaller boxes may lie between the pixels of a map
_REGION_SHARE = 0.01  # of the image: smaller regions without a box are not worth a word
_COVERED_SHARE = 0.1  # of a region, by boxes of its class


def map_of(
    picture: Picture, mask: str, table: np.ndarray, num_classes: int, boxes: ImageLabels | None, of_box: list[int]
) -> Mapped:
    """Return the map of an image, compared with `boxes` if there are any.

    `table` (256,) gives classes by the mask's values; `of_box` the map's class of each class of boxes, -1 for none.
    """
    mapped = Mapped(picture, mask, table)
    try:
        values = read_values(Path(mask))
    except ImageFault as fault:
        mapped.fault = str(fault)
        return mapped
    fault_text = find_value_fault(values, table, num_classes)
    if picture.size_hw is not None and values.shape != picture.size_hw:
        (height, width), (h, w) = values.shape, picture.size_hw
        fault_text = f"{width} x {height} pixels, its image {picture.path} {w} x {h}"
    if fault_text:
        mapped.fault = f"{mask}: {fault_text}"
        return mapped
    classes = map_classes(values, table)
    mapped.counts = count_values(classes)[:num_classes]
    if boxes is not None:
        known = np.array([of_box[int(c)] if int(c) < len(of_box) else -1 for c in boxes.boxes[:, 0]], np.int64)
        mapped.unseen = _unseen(classes, boxes.boxes, known)
        mapped.unboxed = _unboxed(classes, boxes.boxes, known, {number for number in of_box if number >= 0})
    return mapped


def _corners(boxes: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    """Return (n, 4) whole pixels x1, y1, x2, y2 of (n, 5) labels, at least one pixel each, inside the image."""
    size = np.array([size_hw[1], size_hw[0]])
    low = np.clip(np.floor((boxes[:, 1:3] - boxes[:, 3:5] / 2) * size), 0, size - 1)
    high = np.clip(np.ceil((boxes[:, 1:3] + boxes[:, 3:5] / 2) * size), low + 1, size)
    return np.concatenate((low, high), 1).astype(np.int64)


def _unseen(classes: np.ndarray, boxes: np.ndarray, known: np.ndarray) -> list[int]:
    found = []
    for row, (x1, y1, x2, y2) in enumerate(_corners(boxes, classes.shape)):
        inside = classes[y1:y2, x1:x2]
        if known[row] < 0 or inside.size < _MIN_BOX_PX:
            continue
        labelled = np.count_nonzero(inside != IGNORED_PIXEL)
        if labelled >= _LABELLED_SHARE * inside.size and not (inside == known[row]).any():
            found.append(row)
    return found


def _unboxed(
    classes: np.ndarray, boxes: np.ndarray, known: np.ndarray, things: set[int]
) -> list[tuple[int, tuple[float, float, float, float]]]:
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
            if area >= _REGION_SHARE * regions.size and inside[region] < _COVERED_SHARE * area:
                place = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                found.append((number, place))
    return found
