"""The labels of a data set at a glance: how many, where, how large."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.core.contracts import Loader
from utils.plots.draw import PALETTE_BGR, palette_colour
from utils.plots.figure_io import escape_mathtext, new_figure, save_figure

MAX_BOXES = 100_000  # of the scatter pictures; more take long and look the same
OVERLAID_BOXES = 1000
NAMED_CLASSES = 30
_COLUMNS = ("x", "y", "width", "height")


def draw_labels(loader: Loader, folder: Path, names: Sequence[str]) -> None:
    """Write labels.jpg and labels_correlogram.jpg for the labels of `loader` to `folder`."""
    rows = np.concatenate([np.zeros((0, 5), np.float32), *loader.labels])  # class, cx, cy, w, h
    draw_label_overview(rows, Path(folder) / "labels.jpg", names)
    draw_correlogram(rows[:, 1:], Path(folder) / "labels_correlogram.jpg")


def draw_label_overview(rows: np.ndarray, path: Path, names: Sequence[str]) -> Path:
    """Draw (N, 5) rows class, cx, cy, w, h: instances per class, boxes about one centre, places and sizes."""
    figure = new_figure(9, 9)
    (instances, overlay), (places, sizes) = figure.subplots(2, 2)
    counts = np.bincount(rows[:, 0].astype(int), minlength=len(names))
    colours = PALETTE_BGR[np.arange(len(counts)) % len(PALETTE_BGR), ::-1] / 255
    instances.bar(np.arange(len(counts)), counts, color=colours)
    instances.set(ylabel="instances")
    if len(names) <= NAMED_CLASSES:
        instances.set_xticks(range(len(names)), [escape_mathtext(name) for name in names], rotation=90, fontsize=9)
    else:
        instances.set_xlabel("class")
    shown = _sample(rows, MAX_BOXES)
    overlay.imshow(_boxes_about_centre(_sample(rows, OVERLAID_BOXES)))
    overlay.axis("off")
    for axes, columns in ((places, (0, 1)), (sizes, (2, 3))):
        _density(axes, shown[:, 1 + columns[0]], shown[:, 1 + columns[1]])
        axes.set(xlabel=_COLUMNS[columns[0]], ylabel=_COLUMNS[columns[1]])
    return save_figure(figure, path)


def draw_correlogram(boxes_cxcywhn: np.ndarray, path: Path) -> Path:
    """Draw every pair of the four box numbers against each other, each alone on the diagonal."""
    shown = _sample(boxes_cxcywhn, MAX_BOXES)
    figure = new_figure(9, 9)
    grid = figure.subplots(4, 4)
    for row in range(4):
        for column in range(4):
            axes = grid[row][column]
            if column > row:
                axes.axis("off")
                continue
            if row == column:
                axes.hist(shown[:, row], bins=50, range=(0, 1), color="#4C72B0")
                axes.set_yticks([])
            else:
                _density(axes, shown[:, column], shown[:, row])
            axes.set(xlim=(0, 1))
            axes.set_xlabel(_COLUMNS[column] if row == 3 else "")
            axes.set_ylabel(_COLUMNS[row] if column == 0 else "")
    return save_figure(figure, path)


def _sample(rows: np.ndarray, limit: int) -> np.ndarray:
    """Return at most `limit` of the rows, always the same ones."""
    if len(rows) <= limit:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), limit, replace=False)]


def _density(axes, x: np.ndarray, y: np.ndarray) -> None:
    counts, _, _ = np.histogram2d(x, y, bins=50, range=((0, 1), (0, 1)))
    shades = np.where(counts > 0, counts, np.nan).T
    axes.imshow(shades, origin="lower", extent=(0, 1, 0, 1), aspect="auto", cmap="viridis", interpolation="nearest")


def _boxes_about_centre(rows: np.ndarray, side_px: int = 1000) -> np.ndarray:
    """Return an RGB picture of the boxes, all moved to the middle, in the colours of their classes."""
    canvas = np.full((side_px, side_px, 3), 255, np.uint8)
    for index, _, _, width, height in rows.tolist():
        half_w, half_h = width * side_px / 2, height * side_px / 2
        middle = side_px / 2
        first = (round(middle - half_w), round(middle - half_h))
        second = (round(middle + half_w), round(middle + half_h))
        cv2.rectangle(canvas, first, second, palette_colour(int(index)), 1)
    return np.ascontiguousarray(canvas[:, :, ::-1])
