"""Labels: lines that cannot be read, classes nobody named, objects that cannot be, the same one twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import Gathered, Labelled
from utils.datasets.labels.label_scan import is_same_aspect

Box = tuple[float, float, float, float]

_EDGE_PX = 1.5  # rounding may put a box so far over the edge
_TWIN_IOU = 0.9
_MIN_SIDE_PX = 3.0  # behaviour.md 3.12 warns below that
_LONG = 50.0  # times the other side
_OUTLINE_IOU = 0.7  # of an outline's extent with its box
_OUTLINE_PX = 3.0  # by which the two may differ in any case
_FLAT_PX = 0.5  # area that an outline has at least, in pixels


@CHECKS.register("labels")
def check_labels(gathered: Gathered) -> Iterator[Finding]:
    """Yield what is wrong with the labels of each image; a class per image has no boxes to look at."""
    whole = gathered.data.format == "folders"
    for split, images in gathered.splits.items():
        for one in images:
            if not one.picture.fault:
                yield from _of_file(one, split, gathered)
                if not whole and len(one.labels.boxes):
                    yield from _of_boxes(one, split, gathered)
                    yield from _of_outlines(one, split)


def _of_file(one: Labelled, split: str, gathered: Gathered) -> Iterator[Finding]:
    labels, path = one.labels, one.picture.path
    for text in labels.faults:
        kind = "unknown-class" if "not among the `names`" in text else "label-fault"
        yield Finding(kind, text, split, path)
    for text in labels.lost:
        yield Finding("degenerate", text, split, path)
    size_hw = one.picture.size_hw
    if labels.size_hw is not None and size_hw is not None and not is_same_aspect(labels.size_hw, size_hw):
        stated, found = (f"{width} x {height}" for height, width in (labels.size_hw, size_hw))
        yield Finding("size-differs", f"{one.label_file}: says {stated} pixels, {path} has {found}", split, path)
    if labels.duplicates:
        yield Finding("duplicate-label", f"{one.label_file}: {labels.duplicates} repeated", split, path)
    unknown = labels.boxes[labels.boxes[:, 0] >= gathered.data.num_classes]
    if len(unknown):
        classes = ", ".join(str(int(number)) for number in np.unique(unknown[:, 0]))
        text = f"{one.label_file}: class {classes}; {gathered.data.num_classes} are named, from 0"
        yield Finding("unknown-class", text, split, path, boxes=_boxes(unknown))


def _boxes(labels: np.ndarray) -> tuple[Box, ...]:
    return tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in labels[:, 1:5])


def _of_boxes(one: Labelled, split: str, gathered: Gathered) -> Iterator[Finding]:
    labels, path, file = one.labels.boxes, one.picture.path, one.label_file
    height, width = one.picture.size_hw or (1, 1)
    sides_px = labels[:, 3:5] * (width, height)
    over = (np.abs(labels[:, 1:3] - 0.5) + labels[:, 3:5] / 2 - 0.5) * (width, height)
    flat = (labels[:, 3:5] <= 0).any(1)
    small = (sides_px * (gathered.imgsz / max(height, width)) < _MIN_SIDE_PX).any(1) & ~flat
    longest = sides_px.max(1) > _LONG * np.maximum(sides_px.min(1), 1e-9)
    for kind, rows, text in (
        ("degenerate", flat, "{n} with no width or height"),
        ("over-edge", (over > _EDGE_PX).any(1) & ~flat, f"{{n}} reaching up to {over.max():.0f} pixels beyond"),
        ("tiny", small, f"{{n}} with a side below {_MIN_SIDE_PX:g} pixels at image size {gathered.imgsz}"),
        ("odd-shape", longest & ~flat & ~small, f"{{n}} with a side more than {_LONG:g} times the other"),
    ):
        if rows.any():
            yield Finding(kind, f"{file}: {text.format(n=int(rows.sum()))}", split, path, boxes=_boxes(labels[rows]))
    pairs = _twins(labels)
    if pairs:
        rows = np.unique(np.array(pairs).ravel())
        yield Finding("twin-box", f"{file}: {len(pairs)} pairs", split, path, boxes=_boxes(labels[rows]))


def _twins(labels: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs of boxes of one class that overlap almost entirely; of equal classes neighbours by area."""
    low, high = labels[:, 1:3] - labels[:, 3:5] / 2, labels[:, 1:3] + labels[:, 3:5] / 2
    areas = labels[:, 3] * labels[:, 4]
    order = np.lexsort((areas, labels[:, 0]))
    pairs = []
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if labels[j, 0] != labels[i, 0] or areas[i] < _TWIN_IOU * areas[j]:
                break  # sorted by area: all that follow are too large
            shared = np.clip(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0, None).prod()
            if shared > _TWIN_IOU * (areas[i] + areas[j] - shared):
                pairs.append((int(i), int(j)))
    return pairs


def _of_outlines(one: Labelled, split: str) -> Iterator[Finding]:
    height, width = one.picture.size_hw or (1, 1)
    apart, flat = [], []
    for row, outline in enumerate(one.labels.polygons):
        if not len(outline):
            continue
        x, y = (outline * (width, height)).astype(np.float64).T
        if abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 < _FLAT_PX:
            flat.append(row)
        elif _disagrees(one.labels.boxes[row, 1:] * (width, height, width, height), x, y):
            apart.append(row)
    for kind, rows, text in (
        ("outline", apart, "outlines that leave their boxes, or fill little of them"),
        ("flat-outline", flat, "outlines without area"),
    ):
        if rows:
            boxes = _boxes(one.labels.boxes[rows])
            yield Finding(kind, f"{one.label_file}: {len(rows)} {text}", split, one.picture.path, boxes=boxes)


def _disagrees(box_px: np.ndarray, x: np.ndarray, y: np.ndarray) -> bool:
    """Tell whether the extent of an outline differs from a (cx, cy, w, h) box by more than drawing explains."""
    low, high = box_px[:2] - box_px[2:] / 2, box_px[:2] + box_px[2:] / 2
    extent = np.array([x.min(), y.min(), x.max(), y.max()])
    if np.abs(extent - np.concatenate((low, high))).max() <= _OUTLINE_PX:
        return False
    shared = np.clip(np.minimum(high, extent[2:]) - np.maximum(low, extent[:2]), 0, None).prod()
    return bool(shared < _OUTLINE_IOU * (box_px[2:].prod() + (extent[2:] - extent[:2]).prod() - shared))
