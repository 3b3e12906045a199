"""The story of a training run as curves, read from its results.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from utils.plots.figure_io import new_figure, save_figure


def draw_results(csv_path: Path) -> Path | None:
    """Draw every loss and metric of `csv_path` over the epochs to results.png beside it; None without any row.

    Training losses and the first half of the metrics stand above validation losses and the other half: two rows of
    five for detection, of eight for segmentation (behaviour.md 8.2).
    """
    columns = read_columns(csv_path)
    epochs = columns.get("epoch")
    if epochs is None or not len(epochs):
        return None
    top, bottom = panel_rows(list(columns))
    width = max(len(top), len(bottom), 1)
    figure = new_figure(2.6 * width, 6)
    grid = figure.subplots(2, width, squeeze=False)
    for row, names in enumerate((top, bottom)):
        for column in range(width):
            axes = grid[row][column]
            if column >= len(names):
                axes.axis("off")
                continue
            values = columns[names[column]]
            known = np.isfinite(values)
            axes.plot(epochs[known], values[known], marker=".", linewidth=2, markersize=6, color="#1F77B4")
            axes.plot(epochs[known], smooth(values[known]), ":", linewidth=2, color="#FF7F0E")
            axes.set_title(names[column], fontsize=11)
            axes.grid(alpha=0.25)
    figure.legend(["results", "smooth"], loc="outside upper right", ncols=2, frameon=False)
    return save_figure(figure, Path(csv_path).with_name("results.png"))


def read_columns(csv_path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a results.csv by their stripped names; what is no number is NaN."""
    with Path(csv_path).open(encoding="utf-8", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    if not rows:
        return {}
    header, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    return {name: np.array([_number(row[i]) for row in body]) for i, name in enumerate(header)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def panel_rows(names: list[str]) -> tuple[list[str], list[str]]:
    """Return which columns are drawn above and below; the epoch and learning rates (x/…) are not drawn."""
    metrics = [name for name in names if name.startswith("metrics/")]
    half = -(-len(metrics) // 2)
    above = [name for name in names if name.startswith("train/")] + metrics[:half]
    below = [name for name in names if name.startswith("val/")] + metrics[half:]
    return above, below


def smooth(values: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    """Return `values` after a Gaussian of `sigma` epochs that looks only at epochs that are there."""
    index = np.arange(len(values))
    weights = np.exp(-0.5 * ((index[:, None] - index[None, :]) / sigma) ** 2)
    return (weights @ values) / weights.sum(axis=1) if len(values) else values
