"""Precision, recall and F1 curves, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from utils.plots.figure_io import escape_mathtext, new_figure, save_figure, text_widths
from utils.plots.text_rendering import class_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LEGEND_CLASSES = 20  # more curves are drawn in grey without a legend
MAX_ANNOTATED_CLASSES = 30  # with more classes no numbers are written into the confusion matrix
MAX_TICK_CLASSES = 100  # with more classes the axes of the confusion matrix have no class names
BLANK_BELOW = 0.005  # fractions that would be written as 0.00 are left blank
_COLOURS = 10  # of matplotlib's colour cycle; further curves are dashed
_LABEL_PAD = 3.0  # points between the cells and their labels
_DARK_CELL = 0.45  # fractions above it are written in white
_SMOOTHING = 0.1  # width of the box filter, relative to the length of the curve
_EPS = 1e-9


class ScoreCurves(Protocol):
    """Curves of the K classes with labels; see `utils.metrics.detect.DetectDetails`."""

    classes: np.ndarray  # (K,) class indices
    positions: np.ndarray  # (S,) confidence, or recall for `precision_by_recall`
    precision: np.ndarray  # (K, S) by confidence
    recall: np.ndarray  # (K, S) by confidence
    f1: np.ndarray  # (K, S) by confidence
    precision_by_recall: np.ndarray  # (K, S) at IoU 0.5
    ap50: np.ndarray  # (K,)


@dataclass(frozen=True)
class _Chart:
    """Curves over a common axis; `mean` is the curve of all classes, and each curve has a text for the legend."""

    x: np.ndarray  # (S,)
    x_label: str
    y_label: str
    curves: Sequence[tuple[str, np.ndarray]]
    mean: tuple[str, np.ndarray]

    def _draw_curves(self, axes: Axes) -> None:
        """Draw the curves: coloured with a legend for few classes, grey for many."""
        if len(self.curves) > MAX_LEGEND_CLASSES:
            from matplotlib.collections import LineCollection

            lines = [np.column_stack((self.x, values)) for _, values in self.curves]
            axes.add_collection(LineCollection(lines, colors="0.75", linewidths=1), autolim=False)
            return
        for index, (text, values) in enumerate(self.curves):
            style = "solid" if index < _COLOURS else "dashed"
            axes.plot(self.x, values, color=f"C{index % _COLOURS}", label=text, linewidth=1, linestyle=style)

    def save(self, path: Path) -> Path:
        """Draw the chart to `path`."""
        figure = new_figure(9, 6)
        axes = figure.add_subplot()
        self._draw_curves(axes)
        text, mean = self.mean
        axes.plot(self.x, mean, color="blue", linewidth=3, label=text)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.005)
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        axes.set_title(f"{self.y_label} over {self.x_label.lower()}")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside right upper", frameon=False)
        return save_figure(figure, path)


def draw_score_curves(curves: ScoreCurves, folder: Path, names: Sequence[str], prefix: str = "") -> list[Path]:
    """Draw {prefix}PR_curve.png, {prefix}F1_curve.png, {prefix}P_curve.png and {prefix}R_curve.png.

    Args:
        curves: Curves of the classes with labels.
        folder: Folder of the files.
        names: Names of all classes.
        prefix: Start of the file names.

    Returns:
        Paths of the files.
    """
    present = [class_name(names, int(index)) for index in curves.classes]
    path = Path(folder) / f"{prefix}PR_curve.png"
    paths = [draw_pr_curve(curves.positions, curves.precision_by_recall, curves.ap50, path, present)]
    for short, label, values in (
        ("F1", "F1", curves.f1),
        ("P", "Precision", curves.precision),
        ("R", "Recall", curves.recall),
    ):
        path = Path(folder) / f"{prefix}{short}_curve.png"
        paths.append(draw_confidence_curve(curves.positions, values, path, present, label))
    return paths


def draw_confidence_curve(
    confidence: np.ndarray, values: np.ndarray, path: Path, names: Sequence[str], label: str
) -> Path:
    """Draw a metric over the confidence threshold, with the smoothed mean over classes and its maximum.

    Args:
        confidence: (S,) thresholds.
        values: (K, S) metric of each class.
        path: File to write.
        names: Names of the K classes.
        label: Name of the metric.

    Returns:
        `path`.
    """
    mean = _smooth(values.mean(axis=0)) if len(values) else np.zeros_like(confidence)
    best = int(mean.argmax())
    return _Chart(
        x=confidence,
        x_label="Confidence",
        y_label=label,
        curves=[(escape_mathtext(name), row) for name, row in zip(names, values, strict=True)],
        mean=(f"all classes {mean[best]:.2f} at {confidence[best]:.3f}", mean),
    ).save(path)


def draw_pr_curve(
    recall: np.ndarray, precision: np.ndarray, average_precision: np.ndarray, path: Path, names: Sequence[str]
) -> Path:
    """Draw precision over recall at IoU 0.5, with the mean over classes.

    Args:
        recall: (S,) recalls.
        precision: (K, S) precision of each class.
        average_precision: (K,) average precision of each class, for the legend.
        path: File to write.
        names: Names of the K classes.

    Returns:
        `path`.
    """
    texts = [f"{escape_mathtext(name)} {ap:.3f}" for name, ap in zip(names, average_precision, strict=True)]
    has_classes = len(texts) > 0
    mean_ap = float(average_precision.mean()) if has_classes else 0.0
    mean = precision.mean(axis=0) if has_classes else np.zeros_like(recall)
    return _Chart(
        x=recall,
        x_label="Recall",
        y_label="Precision",
        curves=list(zip(texts, precision, strict=True)),
        mean=(f"all classes {mean_ap:.3f} mAP50", mean),
    ).save(path)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Apply the box filter whose maximum defines the operating point of the metrics; edge values are repeated."""
    width = round(len(values) * _SMOOTHING * 2) // 2 + 1
    half = width // 2
    padded = np.concatenate((np.repeat(values[:1], half), values, np.repeat(values[-1:], half)))
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def draw_confusion(matrix: np.ndarray, path: Path, names: Sequence[str]) -> Path:
    """Draw a confusion matrix, normalised by true class.

    Args:
        matrix: (C, C) counts [predicted, true], or (C + 1, C + 1) with the background as the last row and column.
        path: File to write.
        names: Names of the C classes.

    Returns:
        `path`.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    fractions = matrix / (matrix.sum(axis=0, keepdims=True) + _EPS)
    fractions = np.where(fractions < BLANK_BELOW, np.nan, fractions)
    labels = [*names, "background"][: len(matrix)]
    count = len(matrix)
    size = min(14.0, max(7.0, 0.45 * count + 3.55))
    figure = new_figure(size * 1.15, size)
    axes = figure.add_subplot()
    colours = colormaps["Blues"].with_extremes(bad="white")(np.ma.masked_invalid(fractions), bytes=True)
    axes.imshow(colours, interpolation="nearest")
    image = ScalarMappable(Normalize(0, 1), "Blues")
    figure.colorbar(image, ax=axes, fraction=0.04)
    if count <= MAX_ANNOTATED_CLASSES:
        font_size = max(6, min(11, 160 / count))
        for row, column in zip(*np.nonzero(~np.isnan(fractions)), strict=True):
            fraction = fractions[row, column]
            colour = "white" if fraction > _DARK_CELL else "black"
            axes.text(column, row, f"{fraction:.2f}", ha="center", va="center", color=colour, fontsize=font_size)
    label_space = 0.0
    if count <= MAX_TICK_CLASSES:
        label_space = _label_cells(axes, labels, font_size=max(5, min(11, 300 / count)))
    axes.set_xlabel("True", labelpad=label_space)
    axes.set_ylabel("Predicted", labelpad=label_space)
    axes.set_title("Confusion matrix, normalised by true class")
    return save_figure(figure, path)


def _label_cells(axes: Axes, labels: Sequence[str], font_size: float) -> float:
    """Write class names below and to the left of a square image of cells; return the space they need in points.

    Ticks with labels would say the same, but the layout measures each of them several times: a second for 80 classes.
    """
    axes.set_xticks([])
    axes.set_yticks([])
    from matplotlib.font_manager import FontProperties

    at_x, at_y = axes.get_xaxis_text1_transform(_LABEL_PAD)[0], axes.get_yaxis_text1_transform(_LABEL_PAD)[0]
    font = FontProperties(size=font_size)
    for index, label in enumerate(labels):
        text = escape_mathtext(label)
        common: dict[str, Any] = {"fontproperties": font, "in_layout": False}
        axes.text(index, 0, text, rotation=90, transform=at_x, ha="center", va="top", **common)
        axes.text(0, index, text, transform=at_y, ha="right", va="center", **common)
    return max(text_widths([escape_mathtext(label) for label in labels], font_size)) + _LABEL_PAD
