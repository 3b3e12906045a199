"""Plots of a hyperparameter search: history, slices, importances and Pareto front."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.plots.figure_io import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _RED, _GREY = "#1F77B4", "#FF7F0E", "#D62728", "#9A9A9A"
_MAX_COLUMNS = 5  # of the slice plot
_MAX_TICKS, _MAX_LOG_TICKS = 4, 3


def draw_history(rows: Sequence[Mapping[str, Any]], objective: str, path: Path) -> Path:
    """Plot the objective of every trial in order, and the best value so far.

    Args:
        rows: One per trial, with the keys `number`, `value`, `complete` and `defaults` (the last two are booleans).
        objective: Name of the objective.
        path: Output file.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for complete, colour, marker, label in ((True, _BLUE, "o", "trial"), (False, _GREY, "x", "pruned")):
        some = [row for row in rows if row["complete"] == complete]
        if some:
            numbers, values = [row["number"] for row in some], [row["value"] for row in some]
            axes.scatter(numbers, values, color=colour, marker=marker, label=label, zorder=3)
    done = [row for row in rows if row["complete"]]
    if done:
        best = np.maximum.accumulate([row["value"] for row in done])
        axes.step([row["number"] for row in done], best, where="post", color=_ORANGE, label="best so far")
    for row in done:
        if row["defaults"]:
            axes.axhline(row["value"], color=_RED, linestyle="--", linewidth=1, label="defaults")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(objective)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return save_figure(figure, path)


def draw_slices(
    trials: Sequence[tuple[float, Mapping[str, Any], bool]],
    objective: str,
    path: Path,
    logarithmic: Collection[str] = (),
) -> Path | None:
    """Plot the objective over every hyperparameter, with the best trial and the defaults marked.

    Args:
        trials: Objective, hyperparameters, and whether these are the defaults, of every complete trial.
        objective: Name of the objective.
        path: Output file.
        logarithmic: Hyperparameters with a logarithmic axis.

    Returns:
        The file, or None without trials or varying hyperparameters.
    """
    names = list(dict.fromkeys(name for _, hyps, _ in trials for name in hyps))
    if not trials or not names:
        return None
    columns = min(_MAX_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(2.6 * columns + 0.6, 2.4 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    best = max(range(len(trials)), key=lambda index: trials[index][0])
    order = np.arange(len(trials))
    for index, axes in enumerate(grid.flat):
        if index >= len(names):
            axes.axis("off")
            continue
        name = names[index]
        present = [number for number, (_, hyps, _) in enumerate(trials) if name in hyps]
        values, scores = [trials[n][1][name] for n in present], [trials[n][0] for n in present]
        axes.scatter(values, scores, c=order[present], cmap="viridis", s=18, vmin=0, vmax=max(len(trials) - 1, 1))
        for number, colour, marker, label in ((best, _RED, "*", "best"), *_defaults(trials)):
            if name in trials[number][1]:
                axes.scatter(
                    [trials[number][1][name]], [trials[number][0]], color=colour, marker=marker, s=110,
                    facecolors="none", label=label,
                )  # fmt: skip
        _set_ticks(axes, values, name in logarithmic)
        axes.set_title(f"{name}\nbest {_format(trials[best][1].get(name))}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    figure.supylabel(objective)
    figure.supxlabel("colour: trial number, from dark to yellow", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return save_figure(figure, path)


def _set_ticks(axes: Axes, values: Sequence[Any], logarithmic: bool) -> None:
    """Limit the x axis of a slice to few ticks, whose labels do not overlap."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    if not logarithmic or min(values) <= 0:
        if all(isinstance(value, (int, float)) for value in values):
            axes.xaxis.set_major_locator(MaxNLocator(_MAX_TICKS))
        return
    low, high = min(values), max(values)
    ticks = sorted({float(f"{value:.2g}") for value in np.geomspace(low, high, _MAX_LOG_TICKS)})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])


def _defaults(trials: Sequence[tuple[float, Mapping[str, Any], bool]]) -> list[tuple[int, str, str, str]]:
    return [(index, _ORANGE, "s", "defaults") for index, (_, _, is_default) in enumerate(trials) if is_default][:1]


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def draw_importances(fractions: Mapping[str, float], path: Path) -> Path:
    """Plot the importance of each hyperparameter, the largest on top."""
    ordered = sorted(fractions.items(), key=lambda item: item[1])
    figure = new_figure(6, 0.28 * len(ordered) + 1.2)
    axes = figure.subplots()
    axes.barh([name for name, _ in ordered], [fraction for _, fraction in ordered], color=_BLUE)
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.grid(alpha=0.25, axis="x")
    axes.margins(y=0.02)
    return save_figure(figure, path)


def draw_front(points: Sequence[tuple[float, float]], best: Sequence[int], names: Sequence[str], path: Path) -> Path:
    """Plot two objectives against each other, with the Pareto front.

    Args:
        points: Objectives of every complete trial.
        best: Indices of the points on the front.
        names: Names of the objectives.
        path: Output file.
    """
    figure = new_figure(6, 5)
    axes = figure.subplots()
    axes.scatter(*zip(*points, strict=True), color=_BLUE, label="trial")
    front = sorted(points[index] for index in best)
    axes.plot(*zip(*front, strict=True), color=_ORANGE, marker="o", label="Pareto front")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return save_figure(figure, path)
