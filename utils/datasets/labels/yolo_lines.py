"""Parser of YOLO label files: one box or polygon per line; faults are reported by line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.datasets.file_access import read_binary

_BOX_FIELDS = 5
_POLYGON_FIELDS = 7  # class and three points
MAX_BYTES = 32 * 2**20
MAX_CLASS = 2**24  # the largest integer that float32 holds exactly
MAX_OBJECTS = 100_000  # per image; the densest public data sets have 20,000
_MAX_FAULTS = 100  # reported per file


@dataclass
class ImageLabels:
    """Labels of one image, with coordinates normalised by its width and height."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))  # class, cx, cy, w, h
    polygons: list[np.ndarray] = field(default_factory=list)  # (k, 2) of each box; or empty
    present: bool = True  # False: no label file
    duplicates: int = 0
    faults: list[str] = field(default_factory=list)  # `file:line: fault`; the image is unusable
    lost: list[str] = field(default_factory=list)  # faults of single objects, which are dropped
    lost_xyxy: list[tuple[float, ...]] = field(default_factory=list)  # their boxes in pixels
    size_hw: tuple[int, int] | None = None  # size of the image in the annotations; None: not given
    listed: bool = True  # False: not in the annotations, so the image is in no split


def read_labels(path: Path) -> ImageLabels:
    """Read a label file; a missing file means an image without objects, other errors are reported in `faults`."""
    try:
        text = read_binary(path, MAX_BYTES).decode("utf-8-sig")
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
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line and not line.isspace()]
    if not lines:
        return ImageLabels()
    if len(lines) > MAX_OBJECTS:
        return ImageLabels(faults=[f"{source}:{lines[MAX_OBJECTS][0]}: {too_many_objects(len(lines))}"])
    rows = [(number, line.split()) for number, line in lines]
    boxes_at_once = _parse_boxes([fields for _, fields in rows])
    if boxes_at_once is not None:
        return without_duplicates(ImageLabels(boxes_at_once))
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
        rest = len(labels.faults) - _MAX_FAULTS
        more = [f"{source}: {rest} more lines with faults"] if rest > 0 else []
        return ImageLabels(faults=labels.faults[:_MAX_FAULTS] + more)
    labels.boxes = np.stack(boxes)
    return without_duplicates(labels)


def too_many_objects(count: int) -> str:
    """Format the fault of an image with more than `MAX_OBJECTS` objects."""
    return f"{count} objects in one image, at most {MAX_OBJECTS} are supported"


def _parse_boxes(rows: list[list[str]]) -> np.ndarray | None:
    """Parse lines that are all valid boxes at once, to (n, 5) float32; None if a line is anything else."""
    if any(len(fields) != _BOX_FIELDS for fields in rows):
        return None
    try:
        values = np.array(rows, np.float64)
    except ValueError:
        return None
    classes = values[:, 0]
    valid = np.isfinite(values).all() and (values >= 0).all() and (values[:, 1:] <= 1).all()
    if not valid or (classes > MAX_CLASS).any() or (classes != np.floor(classes)).any():
        return None
    return values.astype(np.float32)


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
