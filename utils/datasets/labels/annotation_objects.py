"""Objects of annotation files, in pixels, and their conversion to training labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from utils.datasets.labels.yolo_lines import ImageLabels, without_duplicates

_MAX_PAIRS = 2**20  # of vertices whose distances are computed at once
_MAX_PIECES = 300
_MAX_MASK_PIXELS = 2**28  # above the limit of readable images


@dataclass
class LabelledObject:
    """One object of one image. Coordinates are pixels; the left edge of the first column is 0."""

    name: str
    box_xyxy: np.ndarray  # (4,) float64
    pieces: list[np.ndarray] = field(default_factory=list)  # (k, 2) float64 polygons; empty: only a box is known
    aside: str = ""  # "crowd" or "difficult": not used for training
    where: str = ""  # position in the file for messages, such as `object 3`
    outlined: bool = True  # False: the polygon is only the drawn rectangle


@dataclass(frozen=True)
class FilePanoptic:
    """Panoptic map of one image."""

    ids: np.ndarray  # (H, W) int32 id of the segment of each pixel, 0 = void
    segments: list[tuple[int, str, bool]]  # id, class name, and whether it is a crowd


@dataclass
class FileObjects:
    """Content of the annotations of one image."""

    objects: list[LabelledObject] = field(default_factory=list)
    size_hw: tuple[int, int] | None = None  # None: not given
    image: str = ""  # image name in the file
    present: bool = True  # False: the file does not exist
    faults: list[str] = field(default_factory=list)  # `file: fault`; the file is unusable
    lost: list[str] = field(default_factory=list)  # faults of single objects, which are dropped
    lost_xyxy: list[tuple[float, ...]] = field(default_factory=list)  # their boxes in pixels
    semantic: np.ndarray | None = None  # (H, W) uint8 class of each pixel, 255 unlabelled; None: not in the source
    panoptic: FilePanoptic | None = None  # None: not in the source


class ClassNumbers:
    """Class indices by name, ignoring case unless two names differ only in case."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name.strip(): number for number, name in enumerate(names)}
        folded = {name.casefold(): number for name, number in self._exact.items()}
        self._folded = folded if len(folded) == len(self._exact) else {}

    def get(self, name: str) -> int | None:
        """Look up the index of a class, None if there is no such class."""
        number = self._exact.get(name.strip())
        return self._folded.get(name.strip().casefold()) if number is None else number


def box_fault(box_xyxy: np.ndarray, size_hw: tuple[int, int]) -> str:
    """Find the fault of a (4,) box in pixels, "" if it is valid."""
    if not np.isfinite(box_xyxy).all():
        return "a coordinate is not a finite number"
    x1, y1, x2, y2 = box_xyxy
    if x2 <= x1 or y2 <= y1:
        return f"a box of {x2 - x1:g} x {y2 - y1:g} pixels"
    if x2 <= 0 or y2 <= 0 or x1 >= size_hw[1] or y1 >= size_hw[0]:
        return f"a box outside the image of {size_hw[1]} x {size_hw[0]} pixels"
    return ""


def to_labels(found: FileObjects, size_hw: tuple[int, int], classes: ClassNumbers, source: str) -> ImageLabels:
    """Convert the annotations of an image to training labels.

    Args:
        found: annotations; objects with `aside` are skipped.
        size_hw: size of the image, by which coordinates are divided after clipping to the image.
        classes: class indices.
        source: the annotation file, for messages.

    Returns:
        The labels. An unknown class is a fault of the image; boxes without area or outside the image are dropped.
    """
    labels = ImageLabels(present=found.present, faults=list(found.faults), lost=list(found.lost), size_hw=found.size_hw)
    labels.lost_xyxy = list(found.lost_xyxy)
    limit = np.array([size_hw[1], size_hw[0]], np.float64)
    boxes: list[np.ndarray] = []
    for item in found.objects:
        number = classes.get(item.name)
        if item.aside:
            continue
        if number is None:
            fault = f"class {item.name!r} is not among the `names` of the data YAML"
            labels.faults.append(f"{source}: {item.where}: {fault}")
            continue
        if fault := box_fault(item.box_xyxy, size_hw):
            labels.lost.append(f"{source}: {item.where}: {fault}, dropped")
            labels.lost_xyxy.append(tuple(item.box_xyxy.tolist()))
            continue
        corners = np.clip(item.box_xyxy.reshape(2, 2), 0, limit) / limit
        boxes.append(np.concatenate(([number], corners.mean(0), corners[1] - corners[0])).astype(np.float32))
        outline = np.clip(join_pieces(item.pieces), 0, limit) / limit
        labels.polygons.append(outline.astype(np.float32))
    if labels.faults:
        return ImageLabels(faults=labels.faults)
    if boxes:
        labels.boxes = np.stack(boxes)
    return without_duplicates(labels)


# ----------------------------------------------------------------------------------------------------------------------
# Polygons


def extent(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the (4,) xyxy bounding box of polygons."""
    points = np.concatenate(list(pieces))
    return np.concatenate((points.min(0), points.max(0))).astype(np.float64)


def rectangle(box_xyxy: np.ndarray) -> np.ndarray:
    """Convert a (4,) xyxy box to a (4, 2) polygon."""
    x1, y1, x2, y2 = box_xyxy
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def circle(centre_xy: np.ndarray, radius: float) -> np.ndarray:
    """Approximate a circle by an (n, 2) polygon with an error below 0.1 pixels."""
    quarter = np.ceil(np.pi / 4 / np.arccos(1 - np.clip(0.1 / max(radius, 0.2), 1e-5, 0.5)))
    count = 4 * int(np.clip(quarter, 2, 90))  # a multiple of four keeps the extent of the circle
    angles = np.arange(count) * (2 * np.pi / count)
    return np.asarray(centre_xy + radius * np.stack((np.cos(angles), np.sin(angles)), 1), np.float64)


def join_pieces(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Join the polygons of one object to a single (k, 2) polygon by bridges of zero width.

    The bridges connect the nearest vertices, starting from the largest piece. Rasterised, they may be one pixel wide.
    Of more than `_MAX_PIECES` polygons the smallest are left out, since the time grows with the square of their number.
    """
    if len(pieces) < 2:
        return pieces[0] if pieces else np.zeros((0, 2), np.float64)
    remaining = sorted(pieces, key=lambda piece: -abs(_signed_area(piece)))[:_MAX_PIECES]
    joined = remaining.pop(0)
    while remaining:
        bridges = [_nearest_vertices(joined, piece) for piece in remaining]
        best = min(range(len(remaining)), key=lambda i: bridges[i][0])
        _, here, there = bridges[best]
        piece = remaining.pop(best)
        around = np.concatenate((piece[there:], piece[: there + 1]))
        joined = np.concatenate((joined[: here + 1], around, joined[here:]))
    return joined


def _signed_area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _nearest_vertices(first: np.ndarray, second: np.ndarray) -> tuple[float, int, int]:
    best = (math.inf, 0, 0)
    rows = max(1, _MAX_PAIRS // len(second))
    for start in range(0, len(first), rows):
        squares = ((first[start : start + rows, None] - second[None]) ** 2).sum(2)
        here, there = np.unravel_index(int(squares.argmin()), squares.shape)
        if squares[here, there] < best[0]:
            best = (float(squares[here, there]), start + int(here), int(there))
    return best


def mask_pieces(mask: np.ndarray, min_px: int = 1) -> list[np.ndarray]:
    """Trace the outer contours of a mask.

    Args:
        mask: (H, W), non-zero inside the object.
        min_px: components with fewer pixels are dropped.

    Returns:
        A (k, 2) polygon through the centres of the border pixels of each connected component, without holes; a
        rectangle if the component is too thin for a polygon.
    """
    filled = np.ascontiguousarray(mask > 0).view(np.uint8)
    contours, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    pieces = []
    for contour in contours:
        points = contour.reshape(-1, 2).astype(np.float64) + 0.5
        pixels = cv2.contourArea(contour) + cv2.arcLength(contour, True) / 2 + 1  # Pick's theorem
        if min_px > 1 and pixels < min_px:
            continue
        pieces.append(points if len(points) >= 3 else rectangle(extent([points - 0.5, points + 0.5])))
    return pieces


def run_length_pieces(encoded: dict[str, Any]) -> list[np.ndarray]:
    """Convert a run-length encoded mask of COCO to polygons.

    Args:
        encoded: `size` [height, width] and `counts`, compressed or not.

    Returns:
        The polygons of `mask_pieces`; empty for an empty mask.

    Raises:
        ValueError: the run lengths are invalid.
    """
    height, width = (int(side) for side in encoded["size"])
    if not (0 < height * width <= _MAX_MASK_PIXELS):
        raise ValueError(f"run lengths of an invalid size, {width} x {height} pixels")
    counts = decompress_counts(encoded["counts"]) if isinstance(encoded["counts"], str) else list(encoded["counts"])
    if any(not isinstance(n, int) or n < 0 for n in counts) or sum(counts) != height * width:
        raise ValueError("run lengths that do not add up to the size of their mask")
    flat = np.repeat((np.arange(len(counts)) % 2).astype(np.uint8), counts)  # zeros first, column by column
    return mask_pieces(flat.reshape(width, height).T)


def decompress_counts(text: str) -> list[int]:
    """Decompress the run lengths of COCO.

    Every character encodes six bits, counted from "0"; the sixth bit marks that more follow. From the fourth run on,
    the value is the difference to the run two before. pycocotools does not validate its input, so it is not used.

    Returns:
        The run lengths, or [-1] for invalid text.
    """
    runs: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift > 30:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs if shift == 0 else [-1]


def resized(points: np.ndarray, size_hw: tuple[int, int], to_hw: tuple[int, int]) -> np.ndarray:
    """Scale (..., 2) points from one image size to another."""
    return points * (to_hw[1] / size_hw[1], to_hw[0] / size_hw[0])


def bezier(corners: np.ndarray, kinds: str) -> np.ndarray:
    """Convert BDD100K vertices to a polygon.

    Args:
        corners: (k, 2) vertices.
        kinds: k letters: L is a vertex, two C between vertices are the control points of a cubic Bezier curve.
    """
    start = kinds.find("L")
    if "C" not in kinds or start < 0 or len(kinds) != len(corners):
        return corners
    order = [(start + i) % len(corners) for i in range(len(corners))] + [start]
    path: list[np.ndarray] = []
    at = [i for i, vertex in enumerate(order) if kinds[vertex] == "L"]
    for a, b in pairwise(at):
        path.append(corners[order[a]][None])
        if b - a == 3:
            p0, p1, p2, p3 = (corners[order[i]] for i in range(a, b + 1))
            t = np.linspace(0, 1, 10)[1:-1, None]
            path.append((1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3)
        elif b - a > 1:
            path.append(corners[[order[i] for i in range(a + 1, b)]])
    return np.concatenate(path)
