"""What was right and wrong with the classes of pixels: bars of overlap, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.plots.curves import draw_confusion
from utils.plots.figure_io import escape_mathtext, new_figure, save_figure
from utils.plots.palette import palette

_BAR_INCH = 0.22  # height of a bar with its name
_TALL_INCH = 40.0  # no picture is higher; with hundreds of classes bars become thin
_PALE = 0.8  # bars of colours lighter than this get an outline, to be seen on white


class SemanticScores(Protocol):
    """Scores of C classes, as the evaluator of semantic heads gives them."""

    names: tuple[str, ...]
    confusion: np.ndarray  # (C, C) pixels, [predicted, true]
    iou: np.ndarray  # (C,), NaN for a class that occurs nowhere


def draw_semantic_scores(
    scores: SemanticScores, folder: Path, colours: Sequence[Sequence[int]] = (), prefix: str = "semantic_"
) -> list[Path]:
    """Draw {prefix}IoU.png and {prefix}confusion_matrix.png to `folder`; return their paths.

    `colours` are the data set's RGB colours, if it has any.
    """
    bars = draw_iou_bars(scores.iou, Path(folder) / f"{prefix}IoU.png", scores.names, colours)
    place = Path(folder) / f"{prefix}confusion_matrix.png"
    return [bars, draw_confusion(scores.confusion, place, scores.names)]


def draw_iou_bars(iou: np.ndarray, path: Path, names: Sequence[str], colours: Sequence[Sequence[int]] = ()) -> Path:
    """Draw (C,) overlaps as bars in the classes' colours, the best on top; classes with NaN are left out."""
    known = np.flatnonzero(~np.isnan(iou))
    order = known[np.argsort(-iou[known], kind="stable")]
    figure = new_figure(8, min(_TALL_INCH, _BAR_INCH * len(order) + 1.4))
    axes = figure.add_subplot()
    shades = palette(names, colours)[order] / 255
    edges = ["0.5" if shade.min() > _PALE else "none" for shade in shades]
    places = np.arange(len(order))
    axes.barh(places, iou[order], height=0.75, color=shades, edgecolor=edges, linewidth=0.8)
    for place, value in zip(places.tolist(), iou[order].tolist(), strict=True):
        axes.text(value + 0.008, place, f"{value:.3f}", va="center", fontsize=8)
    axes.set_yticks(places, [escape_mathtext(names[index]) for index in order], fontsize=8)
    axes.set(xlim=(0, 1.08), ylim=(len(order) - 0.4, -0.6), xlabel="IoU")
    axes.set_xticks(np.linspace(0, 1, 6))
    mean = float(iou[known].mean()) if len(known) else 0.0
    axes.axvline(mean, color="black", linewidth=1, linestyle="--")
    axes.set_title(f"mIoU {mean:.3f} of {len(known)} classes" + (f", {rest} absent" if (rest := _absent(iou)) else ""))
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    return save_figure(figure, path)


def _absent(iou: np.ndarray) -> int:
    return int(np.isnan(iou).sum())
