"""A class for each pixel as colours over a picture, and the legend that says which colour is which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.ops.class_fractions import class_fractions
from utils.plots.palette import palette
from utils.plots.text_rendering import Colour, class_name, put_text, text_mask

LEAST_SHARE = 0.0005  # of the picture; a class that covers less stands in no legend
LARGEST_PART = 0.45  # of the picture's height and of its width that a legend may take
HARDLY = 0.2  # of a legend may lie under boxes before it makes room
_PLATE, _PLATE_OPACITY, _INK = (24, 24, 24), 0.65, (255, 255, 255)
_LONGEST_NAME = 24  # characters; longer ones are cut


@dataclass(frozen=True)
class SemanticStyle:
    """How classes of pixels are shown: their names and colours, and how much of the picture shines through."""

    names: tuple[str, ...] = ()
    given: tuple[tuple[int, int, int], ...] = ()  # RGB of the first classes, where the data set has its own
    opacity: float = 0.4  # behaviour.md 12.9
    legend: bool = True


@lru_cache(maxsize=16)
def _table(names: tuple[str, ...], given: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Return (256, 3) uint8 BGR, the colour of every value that a map can hold; nobody's class is black."""
    table = palette([""] * (IGNORED_PIXEL + 1))  # for maps with classes that have no name
    known = palette(names, given)[:IGNORED_PIXEL]
    table[: len(known)] = known
    table[IGNORED_PIXEL] = 0
    return np.ascontiguousarray(table[:, ::-1])


def class_colour(index: int, look: SemanticStyle) -> Colour:
    """Return the colour of class `index`."""
    blue, green, red = (int(value) for value in _table(look.names, look.given)[index])
    return blue, green, red


def colourize(classes: np.ndarray, look: SemanticStyle) -> np.ndarray:
    """Return the (H, W, 3) uint8 BGR picture of an (H, W) uint8 map; ignored pixels are black."""
    return cv2.LUT(cv2.merge([classes] * 3), _table(look.names, look.given)[None])  # four times as fast as indexing


def overlay_semantic_map(canvas: np.ndarray, classes: np.ndarray, look: SemanticStyle) -> None:
    """Tint every pixel of `canvas` (H, W, 3) with the colour of its class, in place; ignored pixels stay.

    A map of another size than the canvas is resized to it.
    """
    if look.opacity <= 0:
        return
    height, width = canvas.shape[:2]
    if classes.shape != (height, width):
        classes = cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST)
    mixed = cv2.addWeighted(canvas, 1 - look.opacity, colourize(classes, look), look.opacity, 0)
    labelled = (classes != IGNORED_PIXEL).view(np.uint8)
    cv2.copyTo(mixed, labelled, canvas)  # into the canvas, also where that is part of a larger array


# ----------------------------------------------------------------------------------------------------------------------
# Legends


@dataclass(frozen=True)
class _Entry:
    """One line of a legend; `colour` None: a remark without a patch of colour."""

    text: str
    colour: Colour | None

    def width_px(self, size_px: int) -> int:
        return text_mask(self.text, size_px).shape[1] + (0 if self.colour is None else size_px + size_px // 2)

    def draw(self, canvas: np.ndarray, left: int, top: int, size_px: int) -> None:
        if self.colour is not None:
            start = top + (text_mask(self.text, size_px).shape[0] - size_px + 1) // 2
            canvas[start : start + size_px, left : left + size_px] = _INK
            canvas[start + 1 : start + size_px - 1, left + 1 : left + size_px - 1] = self.colour
            left += size_px + size_px // 2
        put_text(canvas, self.text, (left, top), size_px, _INK)


def _entry(index: int, look: SemanticStyle) -> _Entry:
    name = class_name(look.names, index)
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return _Entry(short, class_colour(index, look))


def _layout(indices: Sequence[int], look: SemanticStyle, limit_hw: tuple[int, int], size_px: int) -> list[list[_Entry]]:
    """Return the columns of a legend of the classes `indices`, the largest first, that fits into `limit_hw`.

    Where not all fit, the smallest are left out and counted; where none fits there are no columns.
    """
    row_px, gap_px = _row_px(size_px), size_px
    most_rows = (limit_hw[0] - gap_px) // row_px
    for shown in range(len(indices), 0, -1):
        entries = [_entry(index, look) for index in sorted(indices[:shown])]  # in an order that keeps in a video
        if shown < len(indices):
            entries.append(_Entry(f"+ {len(indices) - shown}", None))
        if most_rows < 1:
            return []
        count = -(-len(entries) // most_rows)
        rows = -(-len(entries) // count)
        columns = [entries[start : start + rows] for start in range(0, len(entries), rows)]
        if sum(max(entry.width_px(size_px) for entry in column) + gap_px for column in columns) <= limit_hw[1]:
            return columns
    return []


def _row_px(size_px: int) -> int:
    return text_mask("", size_px).shape[0] + max(1, size_px // 8)


def draw_legend(
    canvas: np.ndarray,
    classes: np.ndarray,
    look: SemanticStyle,
    size_px: int,
    boxes_xyxy: np.ndarray | None = None,
) -> None:
    """Say in a corner of `canvas` (H, W, 3), in place, which colours the classes of the map have.

    The plate is see-through and takes less than half of either side. It lies below left, unless (n, 4) `boxes_xyxy`
    need the place there more than in another corner. Pictures too small for words get none.
    """
    height, width = canvas.shape[:2]
    indices = [index for index, share in class_fractions(classes).items() if share >= LEAST_SHARE]
    columns = _layout(indices, look, (int(height * LARGEST_PART), int(width * LARGEST_PART)), size_px)
    if not columns:
        return
    row_px, gap_px = _row_px(size_px), size_px
    widths = [max(entry.width_px(size_px) for entry in column) for column in columns]
    plate_hw = (len(columns[0]) * row_px + gap_px, sum(widths) + gap_px * len(columns))
    left, top = _corner(plate_hw, (height, width), boxes_xyxy)
    plate = canvas[top : top + plate_hw[0], left : left + plate_hw[1]]
    plate[:] = np.rint(plate * (1 - _PLATE_OPACITY) + np.array(_PLATE) * _PLATE_OPACITY).astype(np.uint8)
    x = gap_px // 2
    for column, column_px in zip(columns, widths, strict=True):
        for row, entry in enumerate(column):
            entry.draw(plate, x, gap_px // 2 + row * row_px, size_px)
        x += column_px + gap_px


def _corner(plate_hw: tuple[int, int], image_hw: tuple[int, int], boxes_xyxy: np.ndarray | None) -> tuple[int, int]:
    """Return left and top of the place for a plate: the first corner that boxes hardly cover, else the least covered.

    Were it always the least covered, the plate would jump about in a video.
    """
    low, right = image_hw[0] - plate_hw[0], image_hw[1] - plate_hw[1]
    corners = [(0, low), (right, low), (right, 0), (0, 0)]
    if boxes_xyxy is None or not len(boxes_xyxy):
        return corners[0]

    def covered(corner: tuple[int, int]) -> int:
        taken = np.zeros(plate_hw, bool)  # overlapping boxes count once
        for box in boxes_xyxy:
            x1, y1, x2, y2 = (max(0, round(float(box[i])) - corner[i % 2]) for i in range(4))
            taken[y1:y2, x1:x2] = True
        return int(taken.sum())

    parts = [covered(corner) / (plate_hw[0] * plate_hw[1]) for corner in corners]
    return next(
        (place for place, part in zip(corners, parts, strict=True) if part <= HARDLY), corners[np.argmin(parts)]
    )


def legend_strip(indices: Sequence[int], look: SemanticStyle, width_px: int, size_px: int = 14) -> np.ndarray:
    """Return a (h, width_px, 3) BGR strip that names the classes `indices` line by line; of none it is empty."""
    row_px, gap_px = _row_px(size_px), size_px
    lines: list[list[_Entry]] = [[]]
    used = gap_px
    for entry in (_entry(index, look) for index in indices):
        needed = entry.width_px(size_px) + gap_px
        if used + needed > width_px and lines[-1]:
            lines.append([])
            used = gap_px
        lines[-1].append(entry)
        used += needed
    if not lines[-1]:
        return np.zeros((0, width_px, 3), np.uint8)
    strip = np.full((len(lines) * row_px + gap_px, width_px, 3), _PLATE, np.uint8)
    for row, line in enumerate(lines):
        x = gap_px
        for entry in line:
            entry.draw(strip, x, gap_px // 2 + row * row_px, size_px)
            x += entry.width_px(size_px) + gap_px
    return strip
