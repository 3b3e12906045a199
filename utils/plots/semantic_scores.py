"""Plots of semantic segmentation metrics: IoU per class and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.plots.curves import draw_confusion
from utils.plots.figure_io import escape_mathtext, new_figure, save_figure
from utils.plots.palette import palette

_DPI = 200
_BAR_INCH = 0.22  # height of a bar with its name
_MAX_HEIGHT_INCH = 40.0  # with hundreds of classes bars become thinner
_PALE = 0.8  # bars whose components all exceed it get an outline, to be visible on white


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
    figure = new_figure(8, min(_MAX_HEIGHT_INCH, _BAR_INCH * len(order) + 1.4))
    axes = figure.add_subplot()
    shades = palette(names, colours)[order] / 255
    edges = ["0.5" if shade.min() > _PALE else "none" for shade in shades]
    positions = np.arange(len(order))
    axes.barh(positions, iou[order], height=0.75, color=shades, edgecolor=edges, linewidth=0.8)
    for position, value in zip(positions.tolist(), iou[order].tolist(), strict=True):
        axes.text(value + 0.008, position, f"{value:.3f}", va="center", fontsize=8)
    axes.set_yticks(positions, [escape_mathtext(names[index]) for index in order], fontsize=8)
    axes.set(xlim=(0, 1.08), ylim=(len(order) - 0.4, -0.6), xlabel="IoU")
    axes.set_xticks(np.linspace(0, 1, 6))
    mean = float(iou[known].mean()) if len(known) else 0.0
    axes.axvline(mean, color="black", linewidth=1, linestyle="--")
    axes.set_title(f"mIoU {mean:.3f} of {len(known)} classes" + (f", {absent} absent" if absent else ""))
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    return save_figure(figure, path, dpi=_DPI)
