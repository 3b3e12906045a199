"""Accuracy against speed over image sizes, a curve for each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.plots.figure_io import escape_mathtext, new_figure, save_figure


def draw_study(curves: Mapping[str, Sequence[Sequence[float]]], columns: Sequence[str], path: Path) -> Path:
    """Draw the last of `columns` over milliseconds per image: a curve per network, a point per image size.

    A row is the size, one value per column, and the milliseconds before, in and after the network. Time is on a
    logarithmic scale: a size twice as large takes four times as long.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(8.5, 5.5)
    axes = figure.subplots()
    best = len(columns)
    for number, (name, rows) in enumerate(curves.items()):
        milliseconds = [sum(row[1 + best :]) for row in rows]
        values = [row[best] for row in rows]
        axes.plot(milliseconds, values, marker="o", markersize=5, color=f"C{number % 10}", label=escape_mathtext(name))
        for row, x, y in zip(rows, milliseconds, values, strict=True):
            axes.annotate(
                f"{row[0]:g}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8,
                color=f"C{number % 10}",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("milliseconds per image (numbers at the points: image size)")
    axes.set_ylabel(columns[-1] if columns else "")
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return save_figure(figure, path)
