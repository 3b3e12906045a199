"""Parser of YOLO label files: one box or polygon per line; faults are reported by line."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_BOX_FIELDS = 5
_POLYGON_FIELDS = 7  # class and three points
MAX_BYTES = 32 * 2**20
MAX_CLASS = 2**24  # the largest integer that float32 holds exactly


@dataclass
class ImageLabels:
    """Labels of one image, with coordinates normalised by its width and height."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))  # class, cx, cy, w, h
    polygons: list[np.ndarray] = field(default_factory=list)  # (k, 2) of each box; or empty
    present: bool = True  # False: no label file
    duplicates: int = 0
    faults: list[str] = field(default_factory=list)  # `file:line: fault`; the image is unusable
    lost: list[str] = field(default_factory=list)  # faults of single objects, which are dropped
    size_hw: tuple[int, int] | None = None  # size of the image in the annotations; None: not given
    listed: bool = True  # False: not in the annotations, so the image is in no split


def read_labels(path: Path) -> ImageLabels:
    """Read a label file; a missing file means an image without objects, other errors are reported in `faults`."""
    try:
        state = path.stat()
        if stat.S_ISFIFO(state.st_mode):  # opening it would block
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
    """Parse the content of a label file.

    Args:
        text: the content; if a line has more than six fields, all lines must be polygons.
        source: the file, for messages.

    Returns:
        The labels without duplicates, or only `faults` if a line is invalid.
    """
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        return ImageLabels()
    polygonal = any(len(fields) > 6 for _, fields in rows)
    labels = ImageLabels()
    boxes: list[np.ndarray] = []
    for number, fields in rows:
        values = _parse_numbers(fields)
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


def _parse_numbers(fields: list[str]) -> np.ndarray:
    try:
        return np.array(fields, np.float64)
    except ValueError:
        return np.full(len(fields), np.nan)


def _line_fault(values: np.ndarray, count: int, polygonal: bool) -> str | None:
    """Find a fault in the format of a line, None if there is none."""
    if not np.isfinite(values).all():
        return "has a value that is not a finite number"
    if not polygonal:
        return None if count == _BOX_FIELDS else f"{count} fields; a box is `class x y width height`"
    if count == _BOX_FIELDS:
        return "a box in a file of polygons; use only one kind per file"
    if count < _POLYGON_FIELDS or count % 2 == 0:
        return f"{count} fields; a polygon has a class and at least three points, `class x1 y1 x2 y2 x3 y3`"
    return None


def _box_of(points: np.ndarray) -> np.ndarray:
    low, high = points.min(0), points.max(0)
    return np.concatenate(((low + high) / 2, high - low))


def _box_fault(box: np.ndarray) -> str | None:
    """Find a fault in the values of a box, None if there is none."""
    if box[0] != int(box[0]):
        return f"class {box[0]:g} is not an integer"
    if box[0] > MAX_CLASS:
        return f"class {box[0]:g} is too large"
    if (box < 0).any():
        return f"negative {'class' if box[0] < 0 else 'coordinate'} {box.min():g}"
    if (box[1:] > 1).any():
        return f"coordinate {box[1:].max():g} above 1; coordinates are divided by image width and height"
    return None


def without_duplicates(labels: ImageLabels) -> ImageLabels:
    """Remove duplicate boxes from the labels and count them."""
    if len(set(map(tuple, labels.boxes.tolist()))) == len(labels.boxes):  # np.unique is ten times slower
        return labels
    _, first = np.unique(labels.boxes, axis=0, return_index=True)
    rows = np.sort(first)
    labels.duplicates = len(labels.boxes) - len(rows)
    labels.boxes = labels.boxes[rows]
    if labels.polygons:
        labels.polygons = [labels.polygons[i] for i in rows]
    return labels
