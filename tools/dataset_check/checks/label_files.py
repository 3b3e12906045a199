"""Checks of labels: unreadable lines, unknown classes, impossible objects, repetitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import DatasetRecords, LabelRecord
from utils.datasets.labels.label_scan import is_same_aspect

Box = tuple[float, float, float, float]

_EDGE_PX = 1.5  # tolerance for boxes beyond the image, which rounding explains
_DUPLICATE_IOU = 0.9
_MIN_SIDE_PX = 3.0  # AutoAnchor warns about smaller labels as well
_MAX_ASPECT_RATIO = 50.0
_POLYGON_IOU = 0.7  # minimum IoU of a polygon's extent with its box
_POLYGON_PX = 3.0  # difference that is always tolerated
_MIN_POLYGON_AREA_PX = 0.5


@CHECKS.register("labels")
def check_labels(records: DatasetRecords) -> Iterator[Finding]:
    """Check the labels of each image; classification labels have no boxes to check."""
    classification = records.classification
    for split, images in records.splits.items():
        for one in images:
            if not one.image.fault:
                yield from _check_file(one, split, records)
                if not classification and len(one.labels.boxes):
                    yield from _check_boxes(one, split, records)
                    yield from _check_polygons(one, split)


def _check_file(one: LabelRecord, split: str, records: DatasetRecords) -> Iterator[Finding]:
    labels, path = one.labels, one.image.path
    for text in labels.faults:
        kind = "unknown-class" if "not among the `names`" in text else "label-fault"
        yield Finding(kind, text, split, path)
    size_hw = one.image.size_hw
    for row, text in enumerate(labels.lost):
        boxes = _normalised(labels.lost_xyxy[row : row + 1], size_hw)
        yield Finding("degenerate", text, split, path, boxes=boxes)
    if labels.size_hw is not None and size_hw is not None and not is_same_aspect(labels.size_hw, size_hw):
        stated, found = (f"{width} x {height}" for height, width in (labels.size_hw, size_hw))
        yield Finding("size-differs", f"{one.label_file}: states {stated} pixels, but {path} has {found}", split, path)
    if labels.duplicates:
        yield Finding("duplicate-label", f"{one.label_file}: repeated labels: {labels.duplicates}", split, path)
    unknown = labels.boxes[labels.boxes[:, 0] >= records.data.num_classes]
    if len(unknown):
        classes = ", ".join(str(int(number)) for number in np.unique(unknown[:, 0]))
        text = f"{one.label_file}: class {classes}; the data YAML has {records.data.num_classes} names"
        yield Finding("unknown-class", text, split, path, boxes=_boxes(unknown))


def _normalised(boxes_xyxy: Sequence[tuple[float, ...]], size_hw: tuple[int, int] | None) -> tuple[Box, ...]:
    """Convert boxes in pixels to finite normalised ones; those of an image of unknown size are left out."""
    if size_hw is None:
        return ()
    corners = np.array(boxes_xyxy, np.float64).reshape(-1, 2, 2) / (size_hw[1], size_hw[0])
    rows = np.concatenate((np.zeros((len(corners), 1)), corners.mean(1), np.diff(corners, axis=1)[:, 0]), axis=1)
    return _boxes(rows[np.isfinite(rows).all(1)])


def _boxes(labels: np.ndarray) -> tuple[Box, ...]:
    return tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in labels[:, 1:5])


def _check_boxes(one: LabelRecord, split: str, records: DatasetRecords) -> Iterator[Finding]:
    labels, path, file = one.labels.boxes, one.image.path, one.label_file
    height, width = one.image.size_hw or (1, 1)
    sides_px = labels[:, 3:5] * (width, height)
    over = (np.abs(labels[:, 1:3] - 0.5) + labels[:, 3:5] / 2 - 0.5) * (width, height)
    flat = (labels[:, 3:5] <= 0).any(1)
    small = (sides_px * (records.imgsz / max(height, width)) < _MIN_SIDE_PX).any(1) & ~flat
    longest = sides_px.max(1) > _MAX_ASPECT_RATIO * np.maximum(sides_px.min(1), 1e-9)
    for kind, rows, text in (
        ("degenerate", flat, "boxes without width or height"),
        (
            "over-edge",
            (over > _EDGE_PX).any(1) & ~flat,
            f"boxes up to {over.max():.0f} pixels beyond the image",
        ),
        ("tiny", small, f"boxes with a side below {_MIN_SIDE_PX:g} pixels at image size {records.imgsz}"),
        ("odd-shape", longest & ~flat & ~small, f"boxes with an aspect ratio above {_MAX_ASPECT_RATIO:g}"),
    ):
        if rows.any():
            yield Finding(kind, f"{file}: {text}: {int(rows.sum())}", split, path, boxes=_boxes(labels[rows]))
    pairs = _duplicate_boxes(labels)
    if pairs:
        rows = np.unique(np.array(pairs).ravel())
        yield Finding(
            "duplicate-box", f"{file}: pairs of duplicate boxes: {len(pairs)}", split, path, boxes=_boxes(labels[rows])
        )


def _duplicate_boxes(labels: np.ndarray) -> list[tuple[int, int]]:
    """Find pairs of boxes of one class with an IoU above _DUPLICATE_IOU; boxes are compared in the order of area."""
    low, high = labels[:, 1:3] - labels[:, 3:5] / 2, labels[:, 1:3] + labels[:, 3:5] / 2
    areas = labels[:, 3] * labels[:, 4]
    order = np.lexsort((areas, labels[:, 0]))
    pairs = []
    for position, i in enumerate(order):
        for j in order[position + 1 :]:
            if labels[j, 0] != labels[i, 0] or areas[i] < _DUPLICATE_IOU * areas[j]:
                break  # all following ones are even larger
            intersection = np.clip(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0, None).prod()
            if intersection > _DUPLICATE_IOU * (areas[i] + areas[j] - intersection):
                pairs.append((int(i), int(j)))
    return pairs


def _check_polygons(one: LabelRecord, split: str) -> Iterator[Finding]:
    height, width = one.image.size_hw or (1, 1)
    differing, flat = [], []
    for row, polygon in enumerate(one.labels.polygons):
        if not len(polygon):
            continue
        x, y = (polygon * (width, height)).astype(np.float64).T
        if abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 < _MIN_POLYGON_AREA_PX:
            flat.append(row)
        elif _disagrees(one.labels.boxes[row, 1:] * (width, height, width, height), x, y):
            differing.append(row)
    for kind, rows, text in (
        ("outline", differing, "polygons that differ from their boxes"),
        ("flat-outline", flat, "polygons without area"),
    ):
        if rows:
            boxes = _boxes(one.labels.boxes[rows])
            yield Finding(kind, f"{one.label_file}: {text}: {len(rows)}", split, one.image.path, boxes=boxes)


def _disagrees(box_px: np.ndarray, x: np.ndarray, y: np.ndarray) -> bool:
    """Check whether a polygon's extent differs from its (cx, cy, w, h) box by more than inaccurate drawing."""
    low, high = box_px[:2] - box_px[2:] / 2, box_px[:2] + box_px[2:] / 2
    extent = np.array([x.min(), y.min(), x.max(), y.max()])
    if np.abs(extent - np.concatenate((low, high))).max() <= _POLYGON_PX:
        return False
    intersection = np.clip(np.minimum(high, extent[2:]) - np.maximum(low, extent[:2]), 0, None).prod()
    return bool(intersection < _POLYGON_IOU * (box_px[2:].prod() + (extent[2:] - extent[:2]).prod() - intersection))
