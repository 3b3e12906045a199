"""The lines of a YOLO label file to boxes and polygons, and every fault by its line (behaviour.md 4.2)."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_BOX_FIELDS = 5
_POLYGON_FIELDS = 7  # a class and three points
MAX_BYTES = 32 * 2**20
MAX_CLASS = 2**24  # more is no class, and float32 would not hold it


@dataclass
class ImageLabels:
    """What is known about the objects of one image. Coordinates are normalised by its width and height."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))  # class, cx, cy, w, h
    polygons: list[np.ndarray] = field(default_factory=list)  # (k, 2) of each box, or no entry at all
    present: bool = True  # False: there is no label file
    duplicates: int = 0
    faults: list[str] = field(default_factory=list)  # `file:line: what is wrong`; the image cannot be used
    lost: list[str] = field(default_factory=list)  # the same of single objects that were left out
    size_hw: tuple[int, int] | None = None  # of the image as the labels have it, None: they do not say
    listed: bool = True  # False: the annotations do not speak of this image, so it is of no split


def read_labels(path: Path) -> ImageLabels:
    """Return the labels in the text file `path`; a missing file means an image without objects."""
    try:
        state = path.stat()
        if stat.S_ISFIFO(state.st_mode):  # opening it would wait for ever
            return ImageLabels(faults=[f"{path}:1: a pipe, not a label file"])
        if state.st_size > MAX_BYTES:
            return ImageLabels(faults=[f"{path}:1: larger than {MAX_BYTES} bytes, not a label file"])
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ImageLabels(present=False)
    except UnicodeDecodeError:
        return ImageLabels(faults=[f"{path}:1: not a text file"])
    except OSError as error:
        return ImageLabels(faults=[f"{path}:1: cannot be read ({error.strerror or error})"])
    return parse_labels(text, str(path))


def parse_labels(text: str, source: str) -> ImageLabels:
    """Return the labels in `text`. One line with more than six fields makes the whole file one of polygons."""
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        return ImageLabels()
    polygonal = any(len(fields) > 6 for _, fields in rows)
    labels = ImageLabels()
    boxes: list[np.ndarray] = []
    for number, fields in rows:
        values = _numbers(fields)
        fault = _line_fault(values, len(fields), polygonal)
        if fault is None:
            points = values[1:].reshape(-1, 2)
            box = np.concatenate((values[:1], _box_of(points))) if polygonal else values
            fault = _box_fault(box)
        if fault is not None:
            labels.faults.append(f"{source}:{number}: {fault}")
            continue
        boxes.append(box.astype(np.float32))
        if polygonal:
            labels.polygons.append(points.astype(np.float32))
    if labels.faults:
        return ImageLabels(faults=labels.faults)
    labels.boxes = np.stack(boxes)
    return without_duplicates(labels)


def _numbers(fields: list[str]) -> np.ndarray:
    try:
        return np.array(fields, np.float64)
    except ValueError:
        return np.full(len(fields), np.nan)


def _line_fault(values: np.ndarray, count: int, polygonal: bool) -> str | None:
    """Return what is wrong with the form of a line, None if nothing is."""
    if not np.isfinite(values).all():
        return "holds something that is not a finite number"
    if not polygonal:
        return None if count == _BOX_FIELDS else f"{count} fields; a box is `class x y width height`"
    if count == _BOX_FIELDS:
        return "a box in a file of polygons; use one kind"
    if count < _POLYGON_FIELDS or count % 2 == 0:
        return f"{count} fields; a polygon is a class and at least three points, `class x1 y1 x2 y2 x3 y3`"
    return None


def _box_of(points: np.ndarray) -> np.ndarray:
    low, high = points.min(0), points.max(0)
    return np.concatenate(((low + high) / 2, high - low))


def _box_fault(box: np.ndarray) -> str | None:
    """Return what is wrong with the values of a box, None if nothing is."""
    if box[0] != int(box[0]):
        return f"class {box[0]:g} is not a whole number"
    if box[0] > MAX_CLASS:
        return f"class {box[0]:g} is no class number"
    if (box < 0).any():
        return f"negative {'class' if box[0] < 0 else 'coordinate'} {box.min():g}"
    if (box[1:] > 1).any():
        return f"coordinate {box[1:].max():g} above 1; coordinates are divided by image width and height"
    return None


def without_duplicates(labels: ImageLabels) -> ImageLabels:
    """Return the labels with every box once, and how many were repeated."""
    if len(set(map(tuple, labels.boxes.tolist()))) == len(labels.boxes):  # np.unique takes ten times as long
        return labels
    _, first = np.unique(labels.boxes, axis=0, return_index=True)
    keep = np.sort(first)
    labels.duplicates = len(labels.boxes) - len(keep)
    labels.boxes = labels.boxes[keep]
    if labels.polygons:
        labels.polygons = [labels.polygons[i] for i in keep]
    return labels
