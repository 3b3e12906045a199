"""Plots of the labels of a data set: instances per class, positions and sizes of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from utils.core.contracts import Loader
from utils.plots.draw import PALETTE_BGR, palette_colour
from utils.plots.figure_io import escape_mathtext, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BOXES = 100_000  # of the histograms; a larger random subset looks the same
MAX_OVERLAID_BOXES = 1000
MAX_NAMED_CLASSES = 30  # with more classes the bars have no names
_BOX_VALUES = ("x", "y", "width", "height")
_BINS = 50
_OVERLAY_PX = 1000


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


def draw_class_bars(axes: Axes, counts: np.ndarray, names: Sequence[str], font_size: float | None = None) -> None:
    """Draw a bar per class in the colour of its boxes, with class names if there are few classes.

    Args:
        axes: Axes to draw on.
        counts: (C,) heights of the bars.
        names: Class names.
        font_size: Size of the names in points (default: matplotlib's).
    """
    numbers = np.arange(len(counts))
    axes.bar(numbers, counts, color=PALETTE_BGR[numbers % len(PALETTE_BGR), ::-1] / 255)
    if len(names) > MAX_NAMED_CLASSES:
        axes.set_xlabel("class")
    else:
        texts = [escape_mathtext(name) for name in names]
        options: dict[str, Any] = {} if font_size is None else {"fontsize": font_size}
        axes.set_xticks(range(len(texts)), texts, rotation=90, **options)


def draw_label_overview(rows: np.ndarray, path: Path, names: Sequence[str]) -> Path:
    """Draw four panels: instances per class, boxes moved to a common centre, box centres and box sizes.

    Args:
        rows: (N, 5) class, cx, cy, w, h, normalised by the image size.
        path: File to write.
        names: Class names.

    Returns:
        `path`.
    """
    figure = new_figure(9, 9)
    instances, overlay, centres, sizes = figure.subplots(2, 2).flat
    draw_class_bars(instances, np.bincount(rows[:, 0].astype(int), minlength=len(names)), names, font_size=9)
    instances.set_ylabel("instances")
    overlay.imshow(_centred_boxes(_random_subset(rows, MAX_OVERLAID_BOXES)))
    overlay.set_axis_off()
    cx, cy, width, height = _random_subset(rows, MAX_BOXES)[:, 1:].T
    _draw_histogram(centres, cx, cy)
    centres.set(xlabel="x", ylabel="y", ylim=(1, 0))  # downwards, as in images
    _draw_histogram(sizes, width, height)
    sizes.set(xlabel="width", ylabel="height")
    return save_figure(figure, path)


def draw_correlogram(boxes_cxcywhn: np.ndarray, path: Path) -> Path:
    """Draw joint histograms of all pairs of cx, cy, w and h, with their own histograms on the diagonal.

    Args:
        boxes_cxcywhn: (N, 4) boxes, normalised by the image size.
        path: File to write.

    Returns:
        `path`.
    """
    shown = _random_subset(boxes_cxcywhn, MAX_BOXES)
    figure = new_figure(9, 9)
    grid = figure.subplots(4, 4)
    for row in range(4):
        for column in range(4):
            axes = grid[row][column]
            if column > row:
                axes.axis("off")
                continue
            if row == column:
                axes.hist(shown[:, row], bins=_BINS, range=(0, 1), color="#4C72B0")
                axes.set_yticks([])
            else:
                _draw_histogram(axes, shown[:, column], shown[:, row])
            axes.set(xlim=(0, 1))
            if _BOX_VALUES[row] == "y" and row != column:
                axes.set(ylim=(1, 0))  # downwards, as in images
            axes.set_xlabel(_BOX_VALUES[column] if row == 3 else "")
            axes.set_ylabel(_BOX_VALUES[row] if column == 0 else "")
    return save_figure(figure, path)


def _random_subset(rows: np.ndarray, limit: int) -> np.ndarray:
    """Return at most `limit` rows, reproducibly."""
    if len(rows) <= limit:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), limit, replace=False)]


def _draw_histogram(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw a two-dimensional histogram of values in [0, 1] with empty bins left white."""
    counts, _, _ = np.histogram2d(x, y, bins=_BINS, range=((0, 1), (0, 1)))
    shades = np.where(counts > 0, counts, np.nan).T
    axes.imshow(shades, origin="lower", extent=(0, 1, 0, 1), aspect="auto", cmap="viridis", interpolation="nearest")


def _centred_boxes(rows: np.ndarray) -> np.ndarray:
    """Return an RGB image of all boxes around its centre, in the colours of their classes."""
    canvas = np.full((_OVERLAY_PX, _OVERLAY_PX, 3), 255, np.uint8)
    centre = _OVERLAY_PX / 2
    for index, _, _, width, height in rows.tolist():
        half_w, half_h = width * _OVERLAY_PX / 2, height * _OVERLAY_PX / 2
        upper_left = (round(centre - half_w), round(centre - half_h))
        lower_right = (round(centre + half_w), round(centre + half_h))
        cv2.rectangle(canvas, upper_left, lower_right, palette_colour(int(index)), 1)
    return np.ascontiguousarray(canvas[:, :, ::-1])
