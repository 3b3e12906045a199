"""Plot of losses and metrics over the epochs of a training, read from results.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from utils.plots.chart import Area, Series, blank_canvas, draw_legend, legend_width, rgb_to_bgr
from utils.plots.figure_io import write_image
from utils.plots.panel import Panel, padded_range

_PANEL_WH, _LEGEND_HEIGHT = (390, 425), 70  # pixels
_MAX_COLUMNS, _MAX_MARKERS = 8, 100  # panels in a row; epochs, as the dots of more would cover the line
_RESULTS = Series("results", np.zeros(0), rgb_to_bgr("1f77b4"), 2)
_SMOOTH = Series("smooth", np.zeros(0), rgb_to_bgr("ff7f0e"), 2, dashed=True)
_SMOOTHING_EPOCHS = 3.0  # standard deviation of the Gaussian
_MIN_SMOOTHED_EPOCHS = 12  # of a shorter run the Gaussian would average the whole curve


def draw_results(csv_path: Path) -> Path | None:
    """Draw results.png beside a results.csv file.

    The upper row shows the training losses and the first half of the metrics, the lower row the validation losses and
    the other half: five panels each for detection, eight for segmentation. More metrics get rows of their own.

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
    rows = panel_rows(list(columns))
    canvas = blank_canvas(_PANEL_WH[0] * max(*map(len, rows), 1), _LEGEND_HEIGHT + len(rows) * _PANEL_WH[1])
    for row, names in enumerate(rows):
        for column, name in enumerate(names):
            left, top = column * _PANEL_WH[0], _LEGEND_HEIGHT + row * _PANEL_WH[1]
            area = Area(left + 82, top + 34, left + _PANEL_WH[0] - 18, top + _PANEL_WH[1] - 42)
            _draw_curve(canvas, area, np.stack((epochs, columns[name]), axis=1), name)
    legend = [_RESULTS, _SMOOTH] if smoothed else [_RESULTS]
    draw_legend(canvas, legend, canvas.shape[1] - legend_width(legend) - 18, 6)
    path = Path(csv_path).with_name("results.png")
    write_image(path, canvas)
    return path


def _draw_curve(canvas: np.ndarray, area: Area, xy: np.ndarray, title: str) -> None:
    """Draw a panel with one column of the file, and the smoothed curve if there are enough values.

    Args:
        canvas: Image, changed in place.
        area: Inside of the panel.
        xy: (n, 2) epochs and values; NaN values are left out.
        title: Name of the column.
    """
    known = xy[np.isfinite(xy[:, 1])]
    panel = Panel(canvas, area, padded_range(xy[:, 0]), padded_range(known[:, 1]))
    panel.draw_axes(title, integers=True)
    panel.draw_line(known, _RESULTS.colour, _RESULTS.width, markers=len(xy) <= _MAX_MARKERS)
    if len(known) >= _MIN_SMOOTHED_EPOCHS:  # metrics have fewer with --val-interval
        smooth_xy = np.stack((known[:, 0], smooth(*known.T)), axis=1)
        panel.draw_line(smooth_xy, _SMOOTH.colour, _SMOOTH.width, _SMOOTH.dashed)
    panel.draw_frame()


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


def panel_rows(names: list[str]) -> list[list[str]]:
    """Distribute the columns of results.csv over rows of panels, without the epoch and learning rates (x/...)."""
    train, val, metrics = ([name for name in names if name.startswith(kind)] for kind in ("train/", "val/", "metrics/"))
    half = -(-len(metrics) // 2)
    if max(len(train), len(val)) + half <= _MAX_COLUMNS:
        return [train + metrics[:half], val + metrics[half:]]
    parts = np.array_split(np.array(metrics, dtype=object), max(-(-len(metrics) // _MAX_COLUMNS), 1))
    return [row for row in (train, val, *(part.tolist() for part in parts)) if row]


def smooth(epochs: np.ndarray, values: np.ndarray, sigma: float = _SMOOTHING_EPOCHS) -> np.ndarray:
    """Smooth (n,) values at (n,) epochs by a Gaussian of `sigma` epochs, normalised at the ends."""
    weights = np.exp(-0.5 * ((epochs[:, None] - epochs[None, :]) / sigma) ** 2)
    return (weights @ values) / weights.sum(axis=1) if len(values) else values
