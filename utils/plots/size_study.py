"""Plot of a metric over inference time for several image sizes and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.plots.figure_io import escape_mathtext, new_figure, save_figure


def draw_study(curves: Mapping[str, Sequence[Sequence[float]]], columns: Sequence[str], path: Path) -> Path:
    """Draw the last metric over milliseconds per image: a curve per network, a point per image size.

    Time is on a logarithmic scale, because doubling the size takes four times as long.

    Args:
        curves: Network name -> rows of the image size, one value per column, and the milliseconds of pre-processing,
            inference and post-processing.
        columns: Names of the metrics.
        path: File to write.

    Returns:
        `path`.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(8.5, 5.5)
    axes = figure.subplots()
    metric = len(columns)
    for number, (name, rows) in enumerate(curves.items()):
        milliseconds = [sum(row[1 + metric :]) for row in rows]
        values = [row[metric] for row in rows]
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
    axes.set_xlabel("milliseconds per image (point labels: image size)")
    axes.set_ylabel(columns[-1] if columns else "")
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return save_figure(figure, path)
