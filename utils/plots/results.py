"""Plot of losses and metrics over the epochs of a training, read from results.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from utils.plots.figure_io import new_figure, save_figure

_SMOOTHING_EPOCHS = 3.0  # standard deviation of the Gaussian
_MIN_SMOOTHED_EPOCHS = 12  # of a shorter run the Gaussian would average the whole curve


def draw_results(csv_path: Path) -> Path | None:
    """Draw results.png beside a results.csv file.

    The upper row shows the training losses and the first half of the metrics, the lower row the validation losses and
    the other half: five panels each for detection, eight for segmentation.

    Args:
        csv_path: results.csv of a run.

    Returns:
        Path of the image, None if the file has no rows.
    """
    columns = read_columns(csv_path)
    epochs = columns.get("epoch")
    if epochs is None or not len(epochs):
        return None
    epochs = epochs + 1  # the file counts from 0, the console from 1
    smoothed = len(epochs) >= _MIN_SMOOTHED_EPOCHS
    upper, lower = panel_rows(list(columns))
    width = max(len(upper), len(lower), 1)
    figure = new_figure(2.6 * width, 6)
    grid = figure.subplots(2, width, squeeze=False)
    for row, names in enumerate((upper, lower)):
        for column in range(width):
            axes = grid[row][column]
            if column >= len(names):
                axes.axis("off")
                continue
            values = columns[names[column]]
            known = np.isfinite(values)
            axes.plot(epochs[known], values[known], marker=".", linewidth=2, markersize=6, color="#1F77B4")
            if smoothed:
                axes.plot(epochs[known], smooth(values[known]), ":", linewidth=2, color="#FF7F0E")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_title(names[column], fontsize=11)
            axes.grid(alpha=0.25)
    labels = ["results", "smooth"] if smoothed else ["results"]
    figure.legend(labels, loc="outside upper right", ncols=2, frameon=False)
    return save_figure(figure, Path(csv_path).with_name("results.png"))


def read_columns(csv_path: Path) -> dict[str, np.ndarray]:
    """Read a results.csv file.

    Returns:
        Column name -> values by row; cells that are not numbers are NaN, incomplete rows are skipped.
    """
    with Path(csv_path).open(encoding="utf-8", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    if not rows:
        return {}
    header, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    return {name: np.array([_to_float(row[i]) for row in body]) for i, name in enumerate(header)}


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def panel_rows(names: list[str]) -> tuple[list[str], list[str]]:
    """Distribute the columns of results.csv over two rows of panels, without the epoch and learning rates (x/...)."""
    metrics = [name for name in names if name.startswith("metrics/")]
    half = -(-len(metrics) // 2)
    upper = [name for name in names if name.startswith("train/")] + metrics[:half]
    lower = [name for name in names if name.startswith("val/")] + metrics[half:]
    return upper, lower


def smooth(values: np.ndarray, sigma: float = _SMOOTHING_EPOCHS) -> np.ndarray:
    """Smooth (n,) values by a Gaussian of `sigma` epochs, normalised at the ends."""
    index = np.arange(len(values))
    weights = np.exp(-0.5 * ((index[:, None] - index[None, :]) / sigma) ** 2)
    return (weights @ values) / weights.sum(axis=1) if len(values) else values
