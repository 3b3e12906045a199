"""Plots of semantic segmentation metrics: IoU per class and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from utils.plots.chart import BLACK, Area, blank_canvas, put_anchored, text_width
from utils.plots.curves import draw_confusion
from utils.plots.figure_io import short_name, write_image
from utils.plots.palette import palette
from utils.plots.panel import Panel

_BAR_PX = 33  # height of a bar with its name
_BARS_PX = 1000  # width of the panel
_MIN_HEIGHT_PX, _MAX_HEIGHT_PX = 120, 6000  # with hundreds of classes bars become thinner
_NAME_FONT = 18  # pixels
_PALE, _OUTLINE = 204, (128, 128, 128)  # bars whose components all exceed it get an outline, to be visible on white


class SemanticScores(Protocol):
    """Metrics of C semantic classes; see `utils.metrics.semantic.SemanticDetails`."""

    names: tuple[str, ...]
    confusion: np.ndarray  # (C, C) numbers of pixels, [predicted, true]
    iou: np.ndarray  # (C,), NaN for absent classes


def draw_semantic_scores(
    scores: SemanticScores, folder: Path, colours: Sequence[Sequence[int]] = (), prefix: str = "semantic_"
) -> list[Path]:
    """Draw {prefix}IoU.png and {prefix}confusion_matrix.png.

    Args:
        scores: Metrics.
        folder: Folder of the files.
        colours: RGB colours of the data set, if it defines them.
        prefix: Start of the file names.

    Returns:
        Paths of the files.
    """
    bars = draw_iou_bars(scores.iou, Path(folder) / f"{prefix}IoU.png", scores.names, colours)
    path = Path(folder) / f"{prefix}confusion_matrix.png"
    return [bars, draw_confusion(scores.confusion, path, scores.names)]


def draw_iou_bars(iou: np.ndarray, path: Path, names: Sequence[str], colours: Sequence[Sequence[int]] = ()) -> Path:
    """Draw the IoU of each class as a bar in its colour, the best on top.

    Args:
        iou: (C,); absent classes, with NaN, are left out.
        path: File to write.
        names: Class names.
        colours: RGB colours of the data set, if it defines them.

    Returns:
        `path`.
    """
    known = np.flatnonzero(~np.isnan(iou))
    absent = len(iou) - len(known)
    order = known[np.argsort(-iou[known], kind="stable")]
    bar = max(1, min(_BAR_PX, _MAX_HEIGHT_PX // max(1, len(order))))
    shown = [short_name(names[index]) for index in order]
    left = 30 + max((text_width(name, _NAME_FONT) for name in shown), default=0)
    canvas = blank_canvas(left + _BARS_PX + 30, 60 + max(_MIN_HEIGHT_PX, bar * len(order)) + 90)
    area = Area(left, 60, left + _BARS_PX, canvas.shape[0] - 90)
    panel = Panel(canvas, area, (0.0, 1.08), (len(order) - 0.5, -0.5) if len(order) else (1.0, 0.0))
    mean = float(iou[known].mean()) if len(known) else 0.0
    title = f"mIoU {mean:.3f} of {len(known)} classes" + (f", {absent} absent" if absent else "")
    panel.draw_axes(title, "IoU", x_ticks=np.linspace(0, 1, 6).tolist(), y_ticks=())
    for position, (value, shade) in enumerate(zip(iou[order].tolist(), palette(names, colours)[order], strict=True)):
        corners = panel.to_pixels(np.array([[0.0, position - 0.375], [value, position + 0.375]])).round().astype(int)
        (x1, y1), (x2, y2) = corners.tolist()
        cv2.rectangle(panel.inside, (x1, y1), (x2, y2), shade[::-1].tolist(), cv2.FILLED)
        if shade.min() > _PALE:
            cv2.rectangle(panel.inside, (x1, y1), (x2, y2), _OUTLINE, 1)
        if bar >= _NAME_FONT:
            middle = (y1 + y2) / 2
            put_anchored(panel.inside, f"{value:.3f}", (x2 + 8, middle), _NAME_FONT, (0, 0.5))
            put_anchored(canvas, shown[position], (left - 10, area.top + middle), _NAME_FONT, (1, 0.5))
    panel.draw_line(np.array([[mean, panel.y[0]], [mean, panel.y[1]]]), BLACK, 2, dashed=True)
    panel.draw_frame()
    write_image(path, canvas)
    return path
