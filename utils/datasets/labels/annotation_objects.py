"""Labelled objects in pixels, as annotation files have them, and the way from there to training labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from utils.datasets.labels.yolo_lines import ImageLabels, without_duplicates

_MOST_PIXELS = 2**28  # of a mask; more is no mask of an image that could be read


@dataclass
class LabelledObject:
    """One object of one image. Coordinates are pixels: the left edge of the first column is 0."""

    name: str
    box_xyxy: np.ndarray  # (4,) float64
    pieces: list[np.ndarray] = field(default_factory=list)  # each (k, 2) float64; none: only a box is known
    aside: str = ""  # "crowd", "difficult": no object to train on
    where: str = ""  # its place in the file, `object 3`
    outlined: bool = True  # False: the outline is only the rectangle that was drawn


@dataclass
class FileObjects:
    """What an annotation file says about one image."""

    objects: list[LabelledObject] = field(default_factory=list)
    size_hw: tuple[int, int] | None = None  # None: the file does not say
    image: str = ""  # what the file calls the image
    present: bool = True  # False: there is no such file
    faults: list[str] = field(default_factory=list)  # `file: what is wrong`; nothing in the file can be relied on
    lost: list[str] = field(default_factory=list)  # objects that make no sense, left out
    semantic: np.ndarray | None = None  # (H, W) uint8 class of each pixel, 255 none, where the source has that


class ClassNumbers:
    """Class numbers by name; upper and lower case are the same unless two names differ only in that."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name.strip(): number for number, name in enumerate(names)}
        folded = {name.casefold(): number for name, number in self._exact.items()}
        self._folded = folded if len(folded) == len(self._exact) else {}

    def get(self, name: str) -> int | None:
        """Return the number of a class, None if there is none of that name."""
        number = self._exact.get(name.strip())
        return self._folded.get(name.strip().casefold()) if number is None else number


def box_fault(box_xyxy: np.ndarray, size_hw: tuple[int, int]) -> str:
    """Return why a box of pixels is no object, "" if it is one."""
    if not np.isfinite(box_xyxy).all():
        return "a coordinate that is not a finite number"
    x1, y1, x2, y2 = box_xyxy
    if x2 <= x1 or y2 <= y1:
        return f"a box of {x2 - x1:g} x {y2 - y1:g} pixels"
    if x2 <= 0 or y2 <= 0 or x1 >= size_hw[1] or y1 >= size_hw[0]:
        return f"a box outside the image of {size_hw[1]} x {size_hw[0]} pixels"
    return ""


def to_labels(found: FileObjects, size_hw: tuple[int, int], classes: ClassNumbers, source: str) -> ImageLabels:
    """Return training labels, divided by `size_hw` and cut at the border of the image.

    A class that has no number is a fault. A box without area, or outside, is lost. Objects put aside are left out.
    """
    labels = ImageLabels(present=found.present, faults=list(found.faults), lost=list(found.lost), size_hw=found.size_hw)
    limit = np.array([size_hw[1], size_hw[0]], np.float64)
    boxes: list[np.ndarray] = []
    for one in found.objects:
        number = classes.get(one.name)
        if one.aside:
            continue
        if number is None:
            labels.faults.append(f"{source}: {one.where}: class {one.name!r} is not among the `names` of the data YAML")
            continue
        if fault := box_fault(one.box_xyxy, size_hw):
            labels.lost.append(f"{source}: {one.where}: {fault}, left out")
            continue
        corners = np.clip(one.box_xyxy.reshape(2, 2), 0, limit) / limit
        boxes.append(np.concatenate(([number], corners.mean(0), corners[1] - corners[0])).astype(np.float32))
        outline = np.clip(join_pieces(one.pieces), 0, limit) / limit
        labels.polygons.append(outline.astype(np.float32))
    if labels.faults:
        return ImageLabels(faults=labels.faults)
    if boxes:
        labels.boxes = np.stack(boxes)
    return without_duplicates(labels)


# ----------------------------------------------------------------------------------------------------------------------
# Outlines


def extent(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Return the (4,) xyxy box around all points."""
    points = np.concatenate(list(pieces))
    return np.concatenate((points.min(0), points.max(0))).astype(np.float64)


def rectangle(box_xyxy: np.ndarray) -> np.ndarray:
    """Return the (4, 2) corners of a box."""
    x1, y1, x2, y2 = box_xyxy
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def circle(centre_xy: np.ndarray, radius: float) -> np.ndarray:
    """Return an (n, 2) polygon that leaves its circle by less than a tenth of a pixel."""
    quarter = np.ceil(np.pi / 4 / np.arccos(1 - min(0.1 / max(radius, 0.2), 0.5)))
    count = 4 * int(np.clip(quarter, 2, 90))  # a multiple of four: the extent is the circle's
    angles = np.arange(count) * (2 * np.pi / count)
    return np.asarray(centre_xy + radius * np.stack((np.cos(angles), np.sin(angles)), 1), np.float64)


def join_pieces(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Return one (k, 2) polygon of several: each piece hangs on the rest by a bridge without width.

    The bridges join the nearest corners, the largest piece comes first. Filled, they may show as lines one pixel wide.
    """
    if len(pieces) < 2:
        return pieces[0] if pieces else np.zeros((0, 2), np.float64)
    left = sorted(pieces, key=lambda piece: -abs(_signed_area(piece)))
    joined = left.pop(0)
    while left:
        bridges = [_nearest_corners(joined, piece) for piece in left]
        best = min(range(len(left)), key=lambda i: bridges[i][0])
        _, here, there = bridges[best]
        piece = left.pop(best)
        around = np.concatenate((piece[there:], piece[: there + 1]))
        joined = np.concatenate((joined[: here + 1], around, joined[here:]))
    return joined


def _signed_area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _nearest_corners(first: np.ndarray, second: np.ndarray) -> tuple[float, int, int]:
    squares = ((first[:, None] - second[None]) ** 2).sum(2)
    here, there = np.unravel_index(int(squares.argmin()), squares.shape)
    return float(squares[here, there]), int(here), int(there)


def mask_pieces(mask: np.ndarray, least_px: int = 1) -> list[np.ndarray]:
    """Trace the outer outline of each connected part of a mask with at least `least_px` pixels.

    Args:
        mask: (H, W) array, non-zero inside. Holes are ignored.
        least_px: Smallest area of a part.

    Returns:
        One (k, 2) polygon per part, through the centres of its border pixels. A part too thin for an outline is given
        by its rectangle.
    """
    filled = np.ascontiguousarray(mask > 0).view(np.uint8)
    contours, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    pieces = []
    for contour in contours:
        points = contour.reshape(-1, 2).astype(np.float64) + 0.5
        if (
            least_px > 1 and cv2.contourArea(contour) + cv2.arcLength(contour, True) / 2 + 1 < least_px
        ):  # Pick's theorem
            continue
        pieces.append(points if len(points) >= 3 else rectangle(extent([points - 0.5, points + 0.5])))
    return pieces


def run_length_pieces(encoded: dict[str, Any]) -> list[np.ndarray]:
    """Return the outlines of COCO run lengths, compressed or not; a mask of no pixels has none.

    ValueError: the run lengths make no mask.
    """
    height, width = (int(side) for side in encoded["size"])
    if not (0 < height * width <= _MOST_PIXELS):
        raise ValueError(f"run lengths of a mask of {width} x {height} pixels")
    counts = unpacked(encoded["counts"]) if isinstance(encoded["counts"], str) else list(encoded["counts"])
    if any(not isinstance(n, int) or n < 0 for n in counts) or sum(counts) != height * width:
        raise ValueError("run lengths that do not add up to the size of their mask")
    flat = np.repeat((np.arange(len(counts)) % 2).astype(np.uint8), counts)  # zeros first, column by column
    return mask_pieces(flat.reshape(width, height).T)


def unpacked(text: str) -> list[int]:
    """Return the run lengths that COCO's compression stands for; [-1] for text that is none.

    Six bits a character from "0" on, the sixth says whether more follow; from the fourth run on the difference to the
    run two before. (pycocotools trusts its input with memory, so it is not asked.)
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
    """Return (..., 2) points of an image of one size in one of another."""
    return points * (to_hw[1] / size_hw[1], to_hw[0] / size_hw[0])


def bezier(corners: np.ndarray, kinds: str) -> np.ndarray:
    """Return the polygon of BDD100K vertices: L is a corner, two C between corners are control points of a cubic."""
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
