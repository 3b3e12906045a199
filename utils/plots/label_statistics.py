"""Plots of the labels of a data set: instances per class, positions and sizes of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.core.contracts import Loader
from utils.plots.chart import FONT, Area, blank_canvas, put_anchored, text_width
from utils.plots.draw import PALETTE_BGR, palette_colour
from utils.plots.figure_io import short_name, write_image
from utils.plots.panel import Panel

MAX_BOXES = 100_000  # of the histograms; a larger random subset looks the same
MAX_OVERLAID_BOXES = 1000
MAX_NAMED_CLASSES = 30  # with more classes the bars have no names
_BOX_VALUES = ("x", "y", "width", "height")
_BINS = 50
_OVERLAY_PX, _OVERVIEW_PX = 1000, 1350
_BAR_BGR = (176, 114, 76)


def draw_labels(loader: Loader, folder: Path, names: Sequence[str]) -> None:
    """Draw labels.jpg and labels_correlogram.jpg for the labels of a loader.

    Args:
        loader: Loader with box labels.
        folder: Folder of the files.
        names: Class names.
    """
    rows = np.concatenate([np.zeros((0, 5), np.float32), *loader.labels])  # class, cx, cy, w, h
    draw_label_overview(rows, Path(folder) / "labels.jpg", names)
    draw_correlogram(rows[:, 1:], Path(folder) / "labels_correlogram.jpg")


def draw_class_bars(
    canvas: np.ndarray, area: Area, counts: np.ndarray, names: Sequence[str], y_label: str, title: str = ""
) -> None:
    """Draw a bar per class in the colour of its boxes, with class names if there are few classes.

    Args:
        canvas: Image, changed in place.
        area: Inside of the panel; names are written below it.
        counts: (C,) heights of the bars.
        names: Class names.
        y_label: Text of the vertical axis.
        title: Text above the panel.
    """
    panel = Panel(canvas, area, (-0.75, len(counts) - 0.25), (0.0, 1.05 * max(1.0, float(counts.max(initial=0)))))
    if len(names) > MAX_NAMED_CLASSES:
        panel.draw_axes(title, "class", y_label, integers=True)
    else:
        panel.draw_axes(title, "", y_label, x_ticks=())
        middles = area.left + panel.to_pixels(np.stack((np.arange(len(names)), np.zeros(len(names))), axis=1))[:, 0]
        for middle, name in zip(middles, names, strict=True):
            put_anchored(canvas, short_name(name), (middle, area.bottom + 8), FONT - 3, (0.5, 0), vertical=True)
    numbers = np.arange(len(counts))
    panel.draw_bars(numbers, counts, PALETTE_BGR[numbers % len(PALETTE_BGR)], width=0.8)
    panel.draw_frame()


def names_height(names: Sequence[str]) -> int:
    """Return the height in pixels of what `draw_class_bars` writes below its panel."""
    if len(names) > MAX_NAMED_CLASSES:
        return 60
    return 12 + max((text_width(short_name(name), FONT - 3) for name in names), default=0)


def draw_label_overview(rows: np.ndarray, path: Path, names: Sequence[str]) -> Path:
    """Draw four panels: instances per class, boxes moved to a common centre, box centres and box sizes.

    Args:
        rows: (N, 5) class, cx, cy, w, h, normalised by the image size.
        path: File to write.
        names: Class names.

    Returns:
        `path`.
    """
    canvas = blank_canvas(_OVERVIEW_PX, _OVERVIEW_PX)
    middle, margin = _OVERVIEW_PX // 2, 20
    left, right = 105, middle + 105
    counts = np.bincount(rows[:, 0].astype(int), minlength=len(names))
    bars = Area(left, margin, middle - margin, middle - min(names_height(names), middle // 2) - margin)
    draw_class_bars(canvas, bars, counts, names, "instances")
    side = middle - 2 * margin
    overlay = _centred_boxes(_random_subset(rows, MAX_OVERLAID_BOXES))
    canvas[margin : margin + side, middle + margin : middle + margin + side] = cv2.resize(
        overlay, (side, side), interpolation=cv2.INTER_AREA
    )
    cx, cy, width, height = _random_subset(rows, MAX_BOXES)[:, 1:].T
    for start, x, y, labels, y_limits in (
        (left, cx, cy, ("x", "y"), (1.0, 0.0)),  # downwards, as in images
        (right, width, height, ("width", "height"), (0.0, 1.0)),
    ):
        area = Area(start, middle + margin, start + middle - 105 - margin, _OVERVIEW_PX - 75)
        panel = Panel(canvas, area, (0.0, 1.0), y_limits)
        panel.draw_axes("", *labels)
        panel.draw_histogram(x, y, _BINS)
        panel.draw_frame()
    write_image(path, canvas)
    return path


def draw_correlogram(boxes_cxcywhn: np.ndarray, path: Path) -> Path:
    """Draw joint histograms of all pairs of cx, cy, w and h, with their own histograms on the diagonal.

    Args:
        boxes_cxcywhn: (N, 4) boxes, normalised by the image size.
        path: File to write.

    Returns:
        `path`.
    """
    shown = _random_subset(boxes_cxcywhn, MAX_BOXES)
    canvas = blank_canvas(_OVERVIEW_PX, _OVERVIEW_PX)
    left, pitch = 90, (_OVERVIEW_PX - 90) // 4
    for row, column in np.argwhere(np.tri(4)).tolist():
        area = Area(left + column * pitch, 20 + row * pitch, left + (column + 1) * pitch - 65, (row + 1) * pitch - 30)
        labels = _BOX_VALUES[column] if row == 3 else "", _BOX_VALUES[row] if column == 0 else ""
        if row == column:
            counts = np.histogram(shown[:, row], bins=_BINS, range=(0, 1))[0]
            panel = Panel(canvas, area, (0.0, 1.0), (0.0, 1.05 * max(1, counts.max(initial=0))))
            panel.draw_axes("", *labels, y_ticks=())
            middles = (np.arange(_BINS) + 0.5) / _BINS
            panel.draw_bars(middles, counts, np.broadcast_to(_BAR_BGR, (_BINS, 3)), width=1 / _BINS)
        else:
            panel = Panel(canvas, area, (0.0, 1.0), (1.0, 0.0) if _BOX_VALUES[row] == "y" else (0.0, 1.0))
            panel.draw_axes("", *labels)
            panel.draw_histogram(shown[:, column], shown[:, row], _BINS)
        panel.draw_frame()
    write_image(path, canvas)
    return path


def _random_subset(rows: np.ndarray, limit: int) -> np.ndarray:
    """Return at most `limit` rows, reproducibly."""
    if len(rows) <= limit:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), limit, replace=False)]


def _centred_boxes(rows: np.ndarray) -> np.ndarray:
    """Return an image of all boxes around its centre, in the colours of their classes."""
    canvas = np.full((_OVERLAY_PX, _OVERLAY_PX, 3), 255, np.uint8)
    centre = _OVERLAY_PX / 2
    for index, _, _, width, height in rows.tolist():
        half_w, half_h = width * _OVERLAY_PX / 2, height * _OVERLAY_PX / 2
        upper_left = (round(centre - half_w), round(centre - half_h))
        lower_right = (round(centre + half_w), round(centre + half_h))
        cv2.rectangle(canvas, upper_left, lower_right, palette_colour(int(index)), 1)
    return canvas
