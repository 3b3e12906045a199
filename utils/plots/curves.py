"""Precision, recall and F1 curves, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.plots.chart import BLACK, WHITE, Series, draw_curves, draw_matrix, rgb_to_bgr
from utils.plots.figure_io import short_name, write_image
from utils.plots.text_rendering import class_name

MAX_LEGEND_CLASSES = 20  # more curves are drawn in grey without a legend
MAX_ANNOTATED_CLASSES = 30  # with more classes no numbers are written into the confusion matrix
MAX_TICK_CLASSES = 100  # with more classes the axes of the confusion matrix have no class names
BLANK_BELOW = 0.005  # fractions that would be written as 0.00 are left blank
_CHART_WH = (1350, 900)  # pixels
_LINE_WIDTH, _MEAN_WIDTH = 2, 6  # pixels
_GREY, _MEAN = (191, 191, 191), (255, 0, 0)  # BGR
# Tableau's ten colours, as RGB; further curves are dashed
_COLOURS = (
    "1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "7f7f7f", "bcbd22", "17becf",
)  # fmt: skip
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


def _save_chart(
    path: Path, x: np.ndarray, labels: tuple[str, str], curves: Sequence[tuple[str, np.ndarray]], mean: Series
) -> Path:
    """Draw curves to `path`: coloured with a legend for few classes, grey for many.

    Args:
        path: File to write.
        x: (S,) positions.
        labels: Labels of the horizontal and the vertical axis.
        curves: Text for the legend and (S,) values of each class.
        mean: Curve of all classes.

    Returns:
        `path`.
    """
    if len(curves) > MAX_LEGEND_CLASSES:
        series = [Series("", values, _GREY, _LINE_WIDTH) for _, values in curves]
    else:
        series = [
            Series(text, values, rgb_to_bgr(_COLOURS[index % len(_COLOURS)]), _LINE_WIDTH, index >= len(_COLOURS))
            for index, (text, values) in enumerate(curves)
        ]
    title = f"{labels[1]} over {labels[0].lower()}"
    write_image(path, draw_curves(x, [*series, mean], (title, *labels), _CHART_WH))
    return path


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
    text = f"all classes {mean[best]:.2f} at {confidence[best]:.3f}"
    curves = [(short_name(name), row) for name, row in zip(names, values, strict=True)]
    return _save_chart(path, confidence, ("Confidence", label), curves, Series(text, mean, _MEAN, _MEAN_WIDTH))


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
    texts = [f"{short_name(name)} {ap:.3f}" for name, ap in zip(names, average_precision, strict=True)]
    has_classes = len(texts) > 0
    mean_ap = float(average_precision.mean()) if has_classes else 0.0
    mean = precision.mean(axis=0) if has_classes else np.zeros_like(recall)
    of_all = Series(f"all classes {mean_ap:.3f} mAP50", mean, _MEAN, _MEAN_WIDTH)
    return _save_chart(path, recall, ("Recall", "Precision"), list(zip(texts, precision, strict=True)), of_all)


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
    fractions = matrix / (matrix.sum(axis=0, keepdims=True) + _EPS)
    fractions = np.where(fractions < BLANK_BELOW, np.nan, fractions)
    count = len(matrix)
    names = [short_name(name) for name in [*names, "background"][:count]]
    texts = []
    if count <= MAX_ANNOTATED_CLASSES:
        for row, column in zip(*np.nonzero(~np.isnan(fractions)), strict=True):
            fraction = fractions[row, column]
            texts.append((int(row), int(column), f"{fraction:.2f}", WHITE if fraction > _DARK_CELL else BLACK))
    labels = ("Confusion matrix, normalised by true class", "True", "Predicted")
    write_image(path, draw_matrix(fractions, names if count <= MAX_TICK_CLASSES else [], texts, labels))
    return path
