"""Plot of pruned networks: score over parameters, operations and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.plots.figure_io import new_figure, save_figure

AXES = (
    ("parameters", 1e-6, "million parameters"),
    ("gflops", 1.0, "GFLOPs"),
    ("milliseconds", 1.0, "milliseconds per image"),
)
COLOURS = {"before": "#555555", "pruned": "#D62728", "sparse": "#D62728", "fine-tuned": "#1F77B4"}


def draw_pruning(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the score of each network over each measure; without scores, bars of the measures.

    Args:
        rows: Networks with `network`, `parameters`, `gflops`, `milliseconds` and `scores` (None: not scored).
        path: Image file to write.
    """
    figure = new_figure(13, 4.2)
    for axes, (key, factor, text) in zip(figure.subplots(1, len(AXES)), AXES, strict=True):
        values = [(row[key] or 0) * factor for row in rows]
        if all(row["scores"] for row in rows):
            _points(axes, rows, values)
            text = f"{text}: {values[0]:.3g} → {values[-1]:.3g} ({values[-1] / values[0]:.0%})" if values[0] else text
        else:
            bars = axes.bar([row["network"] for row in rows], values, color=[COLOURS[row["network"]] for row in rows])
            axes.bar_label(bars, [f"{value:.3g}" for value in values])
        axes.set_xlabel(text)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if all(row["scores"] for row in rows):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return save_figure(figure, path)


def _points(axes: Any, rows: Sequence[Mapping[str, Any]], values: Sequence[float]) -> None:
    """Draw the last score of each network over one measure, with both axes from zero."""
    name = list(rows[0]["scores"])[-1]
    scores = [row["scores"][name] for row in rows]
    axes.plot(values, scores, "--", color="#BBBBBB", zorder=1)
    for row, x, y in zip(rows, values, scores, strict=True):
        label = f"{row['network']} {y:.3f}"  # in the legend: the points are often too close for text beside them
        axes.scatter([x], [y], s=60, color=COLOURS[row["network"]], zorder=2, label=label)
    axes.set_xlim(0, 1.12 * max(values))
    axes.set_ylim(0, 1.15 * max(*scores, 1e-6))
    axes.set_ylabel(name)
