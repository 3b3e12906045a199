"""Accuracy against speed over image sizes, as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.plots.output import new_figure, save_figure


def draw_study(rows: Sequence[Sequence[float]], columns: Sequence[str], path: Path) -> Path:
    """Draw the last of `columns` over milliseconds per image, one point per image size.

    A row is the size, one value per column, and the milliseconds before, in and after the network.
    """
    figure = new_figure(7, 5)
    axes = figure.subplots()
    milliseconds = [sum(row[1 + len(columns) :]) for row in rows]
    values = [row[len(columns)] for row in rows]
    axes.plot(milliseconds, values, marker="o", color="#1F77B4")
    for row, x, y in zip(rows, milliseconds, values, strict=True):
        axes.annotate(f"{row[0]:g}", (x, y), textcoords="offset points", xytext=(5, -10), fontsize=9)
    axes.set_xlabel("milliseconds per image")
    axes.set_ylabel(columns[-1])
    axes.grid(alpha=0.25)
    return save_figure(figure, path)
