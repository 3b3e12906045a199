"""Scores as curves over confidence and recall, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.plots.draw import class_name
from utils.plots.figure_io import escape_mathtext, new_figure, save_figure

NAMED_CURVES = 20  # more classes than this are drawn as thin lines without a legend
ANNOTATED_CLASSES = 30
NAMED_TICKS = 100
BLANK_BELOW = 0.005  # behaviour.md 6.3


class ScoreCurves(Protocol):
    """Curves of the K classes that have labels, as the evaluator of boxes gives them."""

    classes: np.ndarray  # (K,) their numbers
    positions: np.ndarray  # (S,) confidence, or recall for the last of the curves
    precision: np.ndarray  # (K, S) by confidence
    recall: np.ndarray  # (K, S) by confidence
    f1: np.ndarray  # (K, S) by confidence
    precision_by_recall: np.ndarray  # (K, S) at overlap .5
    ap50: np.ndarray  # (K,)


def draw_score_curves(curves: ScoreCurves, folder: Path, names: Sequence[str], prefix: str = "") -> list[Path]:
    """Draw {prefix}PR_curve.png and the F1, P and R curves over confidence to `folder`; return their paths."""
    shown = [class_name(names, int(index)) for index in curves.classes]
    place = f"{prefix}PR_curve.png"
    paths = [draw_pr_curve(curves.positions, curves.precision_by_recall, curves.ap50, Path(folder) / place, shown)]
    for short, title, values in (
        ("F1", "F1", curves.f1),
        ("P", "Precision", curves.precision),
        ("R", "Recall", curves.recall),
    ):
        path = Path(folder) / f"{prefix}{short}_curve.png"
        paths.append(draw_confidence_curve(curves.positions, values, path, shown, title))
    return paths


def draw_confidence_curve(
    confidence: np.ndarray, values: np.ndarray, path: Path, names: Sequence[str], title: str
) -> Path:
    """Draw (C, S) `values`, one row per name, over (S,) `confidence` to `path`; `title` says what they are."""
    mean = _smoothed(values.mean(axis=0)) if len(values) else np.zeros_like(confidence)
    best = int(mean.argmax())
    text = f"all classes {mean[best]:.2f} at {confidence[best]:.3f}"
    lines = [(escape_mathtext(name), row) for name, row in zip(names, values, strict=True)]
    return _draw(confidence, lines, (text, mean), path, ("Confidence", title))


def draw_pr_curve(
    recall: np.ndarray, precision: np.ndarray, average_precision: np.ndarray, path: Path, names: Sequence[str]
) -> Path:
    """Draw (C, S) `precision` over (S,) `recall`, each class with its (C,) average precision at IoU 0.5."""
    mean = precision.mean(axis=0) if len(precision) else np.zeros_like(recall)
    overall = float(average_precision.mean()) if len(average_precision) else 0.0
    rows = zip(names, precision, average_precision, strict=True)
    lines = [(f"{escape_mathtext(name)} {value:.3f}", row) for name, row, value in rows]
    return _draw(recall, lines, (f"all classes {overall:.3f} mAP50", mean), path, ("Recall", "Precision"))


def _draw(
    x: np.ndarray,
    lines: Sequence[tuple[str, np.ndarray]],
    mean: tuple[str, np.ndarray],
    path: Path,
    axis_names: tuple[str, str],
) -> Path:
    figure = new_figure(9, 6)
    axes = figure.add_subplot()
    named = 0 < len(lines) <= NAMED_CURVES
    for i, (text, row) in enumerate(lines):
        colour = f"C{i % 10}" if named else "0.75"
        axes.plot(x, row, "-" if i < 10 else "--", linewidth=1, color=colour, label=text if named else None)
    axes.plot(x, mean[1], linewidth=3, color="blue", label=mean[0])
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel=axis_names[0], ylabel=axis_names[1])
    axes.set_title(f"{axis_names[1]} over {axis_names[0].lower()}")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    return save_figure(figure, path)


def _smoothed(values: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    """Return the box-filtered curve whose maximum is the operating point (behaviour.md 6.2)."""
    width = round(len(values) * fraction * 2) // 2 + 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")[: len(values)]


def draw_confusion(matrix: np.ndarray, path: Path, names: Sequence[str]) -> Path:
    """Draw a matrix [predicted, true] as shares of each true class: (C, C), or one more for the background, last."""
    shares = matrix / (matrix.sum(axis=0, keepdims=True) + 1e-9)
    shares = np.where(shares < BLANK_BELOW, np.nan, shares)
    titles = [*names, "background"][: len(matrix)]
    count = len(matrix)
    size = min(14.0, max(7.0, 0.45 * count + 3.55))
    figure = new_figure(size * 1.15, size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.04)
    if count <= ANNOTATED_CLASSES:
        font_size = max(6, min(11, 160 / count))
        for row, column in zip(*np.nonzero(~np.isnan(shares)), strict=True):
            share = shares[row, column]
            colour = "white" if share > 0.45 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=font_size)
    if count <= NAMED_TICKS:
        ticks = [escape_mathtext(name) for name in titles]
        font_size = max(5, min(11, 300 / count))
        axes.set_xticks(range(count), ticks, rotation=90, fontsize=font_size)
        axes.set_yticks(range(count), ticks, fontsize=font_size)
    axes.set(xlabel="True", ylabel="Predicted", title="Confusion matrix, normalised by true class")
    return save_figure(figure, path, dpi=250)
