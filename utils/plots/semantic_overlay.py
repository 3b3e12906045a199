"""Semantic maps as colours over an image, and legends of their classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.ops.class_fractions import class_fractions
from utils.plots.palette import palette
from utils.plots.semantic_style import SemanticStyle
from utils.plots.text_rendering import Colour, class_name, put_text, text_mask

BACKGROUND = "background"  # class name that overlays and legends leave out
MIN_FRACTION = 0.0005  # of the labelled pixels; smaller classes are not in the legend
MAX_LEGEND_SIDE = 0.45  # of the image height or width that the legend may take
MAX_COVERED = 0.2  # of the legend's area that boxes may cover before it moves to another corner
_PLATE, _PLATE_OPACITY, _INK = (24, 24, 24), 0.65, (255, 255, 255)
_MAX_NAME = 24  # characters


@lru_cache(maxsize=16)
def _colour_table(names: tuple[str, ...], colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Return the (256, 3) uint8 BGR colours of all values of a map; ignored pixels are black."""
    table = palette([""] * (IGNORED_PIXEL + 1))  # for classes without a name
    known = palette(names, colours)[:IGNORED_PIXEL]
    table[: len(known)] = known
    table[IGNORED_PIXEL] = 0
    return np.ascontiguousarray(table[:, ::-1])


@lru_cache(maxsize=16)
def _visible_values(names: tuple[str, ...]) -> np.ndarray:
    """Return (256,) uint8, 1 for the values of a map that overlays show: all but ignored pixels and a background."""
    values = np.ones(IGNORED_PIXEL + 1, np.uint8)
    values[IGNORED_PIXEL] = 0
    values[[index for index, name in enumerate(names[:IGNORED_PIXEL]) if name.strip(" _").lower() == BACKGROUND]] = 0
    return values


def visible_classes(indices: Iterable[int], style: SemanticStyle) -> list[int]:
    """Select the classes that overlays show, all but a class named `background`, which would tint the whole image."""
    return [index for index in indices if _visible_values(style.names)[index]]


def class_colour(index: int, style: SemanticStyle) -> Colour:
    """Return the BGR colour of a semantic class."""
    blue, green, red = (int(value) for value in _colour_table(style.names, style.colours)[index])
    return blue, green, red


def colourize(semantic_map: np.ndarray, style: SemanticStyle) -> np.ndarray:
    """Convert an (H, W) uint8 semantic map to an (H, W, 3) uint8 BGR image; ignored pixels are black."""
    table = _colour_table(style.names, style.colours)
    return cv2.LUT(cv2.merge([semantic_map] * 3), table[None])  # four times as fast as indexing


def overlay_semantic_map(canvas: np.ndarray, semantic_map: np.ndarray, style: SemanticStyle) -> None:
    """Blend a semantic map into an image; ignored pixels and a class named `background` are unchanged.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        semantic_map: (h, w) uint8 classes, resized to the canvas if necessary.
        style: Colours and opacity.
    """
    if style.opacity <= 0:
        return
    height, width = canvas.shape[:2]
    if semantic_map.shape != (height, width):
        semantic_map = cv2.resize(semantic_map, (width, height), interpolation=cv2.INTER_NEAREST)
    blended = cv2.addWeighted(canvas, 1 - style.opacity, colourize(semantic_map, style), style.opacity, 0)
    visible = cv2.LUT(semantic_map, _visible_values(style.names))
    cv2.copyTo(blended, visible, canvas)  # works in place also for views of larger arrays


# ----------------------------------------------------------------------------------------------------------------------
# Legends


@dataclass(frozen=True)
class _Entry:
    """A line of a legend: text with a square of colour, or without one if `colour` is None."""

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


def _make_entry(index: int, style: SemanticStyle) -> _Entry:
    name = class_name(style.names, index)
    short = name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
    return _Entry(short, class_colour(index, style))


def _layout(
    indices: Sequence[int], style: SemanticStyle, limit_hw: tuple[int, int], size_px: int
) -> list[list[_Entry]]:
    """Arrange the entries of a legend in columns that fit into `limit_hw` pixels.

    Args:
        indices: Classes in descending order of size; the smallest are replaced by a count if not all fit.
        style: Names and colours.
        limit_hw: Maximum height and width.
        size_px: Font size.

    Returns:
        Columns of entries, empty if not even one entry fits.
    """
    row_px, gap_px = _row_px(size_px), size_px
    max_rows = (limit_hw[0] - gap_px) // row_px
    for shown in range(len(indices), 0, -1):
        entries = [_make_entry(index, style) for index in sorted(indices[:shown])]  # a stable order in videos
        if shown < len(indices):
            entries.append(_Entry(f"+ {len(indices) - shown}", None))
        if max_rows < 1:
            return []
        count = -(-len(entries) // max_rows)
        rows = -(-len(entries) // count)
        columns = [entries[start : start + rows] for start in range(0, len(entries), rows)]
        if sum(max(entry.width_px(size_px) for entry in column) + gap_px for column in columns) <= limit_hw[1]:
            return columns
    return []


def _row_px(size_px: int) -> int:
    return text_mask("", size_px).shape[0] + max(1, size_px // 8)


def draw_legend(
    canvas: np.ndarray,
    semantic_map: np.ndarray,
    style: SemanticStyle,
    size_px: int,
    boxes_xyxy: np.ndarray | None = None,
) -> None:
    """Draw a legend of the classes of a semantic map on a translucent plate in a corner of an image.

    The plate is in the lower left corner unless boxes cover too much of it, and takes less than half of the height and
    width. Images that are too small get no legend.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        semantic_map: (h, w) uint8 classes.
        style: Names and colours.
        size_px: Font size.
        boxes_xyxy: (n, 4) boxes in pixels of the canvas to keep visible.
    """
    height, width = canvas.shape[:2]
    fractions = class_fractions(semantic_map)
    indices = [index for index in visible_classes(fractions, style) if fractions[index] >= MIN_FRACTION]
    columns = _layout(indices, style, (int(height * MAX_LEGEND_SIDE), int(width * MAX_LEGEND_SIDE)), size_px)
    if not columns:
        return
    row_px, gap_px = _row_px(size_px), size_px
    widths = [max(entry.width_px(size_px) for entry in column) for column in columns]
    plate_hw = (len(columns[0]) * row_px + gap_px, sum(widths) + gap_px * len(columns))
    left, top = _choose_corner(plate_hw, (height, width), boxes_xyxy)
    plate = canvas[top : top + plate_hw[0], left : left + plate_hw[1]]
    plate[:] = np.rint(plate * (1 - _PLATE_OPACITY) + np.array(_PLATE) * _PLATE_OPACITY).astype(np.uint8)
    x = gap_px // 2
    for column, column_px in zip(columns, widths, strict=True):
        for row, entry in enumerate(column):
            entry.draw(plate, x, gap_px // 2 + row * row_px, size_px)
        x += column_px + gap_px


def _choose_corner(
    plate_hw: tuple[int, int], image_hw: tuple[int, int], boxes_xyxy: np.ndarray | None
) -> tuple[int, int]:
    """Return left and top of the plate in the first corner that boxes hardly cover, else in the least covered one.

    Always taking the least covered corner would make the legend jump in videos.
    """
    low, right = image_hw[0] - plate_hw[0], image_hw[1] - plate_hw[1]
    corners = [(0, low), (right, low), (right, 0), (0, 0)]
    if boxes_xyxy is None or not len(boxes_xyxy):
        return corners[0]

    def covered_fraction(corner: tuple[int, int]) -> float:
        covered = np.zeros(plate_hw, bool)
        for box in boxes_xyxy:
            x1, y1, x2, y2 = (max(0, round(float(box[i])) - corner[i % 2]) for i in range(4))
            covered[y1:y2, x1:x2] = True
        return int(covered.sum()) / (plate_hw[0] * plate_hw[1])

    fractions = [covered_fraction(corner) for corner in corners]
    return next(
        (corner for corner, fraction in zip(corners, fractions, strict=True) if fraction <= MAX_COVERED),
        corners[np.argmin(fractions)],
    )


def legend_strip(indices: Sequence[int], style: SemanticStyle, width_px: int, size_px: int = 14) -> np.ndarray:
    """Draw a legend as a strip of text lines.

    Args:
        indices: Classes in order.
        style: Names and colours.
        width_px: Width of the strip.
        size_px: Font size.

    Returns:
        (h, width_px, 3) uint8 BGR, with h = 0 without classes.
    """
    row_px, gap_px = _row_px(size_px), size_px
    lines: list[list[_Entry]] = [[]]
    used = gap_px
    for entry in (_make_entry(index, style) for index in indices):
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
