"""A hyper-parameter search as pictures: its course, what each hyper-parameter did, and which of them matter."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.plots.figure_io import new_figure, save_figure

_BLUE, _ORANGE, _RED, _GREY = "#1F77B4", "#FF7F0E", "#D62728", "#9A9A9A"
_SHORT = 5  # columns of small pictures


def draw_history(rows: Sequence[Mapping[str, Any]], goal: str, path: Path) -> Path:
    """Draw the goal of every trial in its order, and the best so far.

    A row has `number`, `value`, and whether the trial is `complete` and has the `defaults`.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for complete, colour, marker, label in ((True, _BLUE, "o", "trial"), (False, _GREY, "x", "ended early")):
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
    axes.set_ylabel(goal)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return save_figure(figure, path)


def draw_slices(
    trials: Sequence[tuple[float, Mapping[str, Any], bool]], goal: str, path: Path, logarithmic: Collection[str] = ()
) -> Path | None:
    """Draw the goal over every hyper-parameter that varied; the best trial is marked, and the defaults.

    A trial is its value, its hyper-parameters, and whether they are the defaults; those in `logarithmic` get such an
    axis. None without any.
    """
    names = list(dict.fromkeys(name for _, hyps, _ in trials for name in hyps))
    if not trials or not names:
        return None
    columns = min(_SHORT, len(names))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(2.6 * columns + 0.6, 2.4 * lines + 0.5)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    best = max(range(len(trials)), key=lambda index: trials[index][0])
    order = np.arange(len(trials))
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.axis("off")
            continue
        name = names[place]
        there = [index for index, (_, hyps, _) in enumerate(trials) if name in hyps]
        values, scores = [trials[index][1][name] for index in there], [trials[index][0] for index in there]
        axes.scatter(values, scores, c=order[there], cmap="viridis", s=18, vmin=0, vmax=max(len(trials) - 1, 1))
        for index, colour, marker, label in ((best, _RED, "*", "best"), *_defaults(trials)):
            if name in trials[index][1]:
                axes.scatter(
                    [trials[index][1][name]], [trials[index][0]], color=colour, marker=marker, s=110, facecolors="none",
                    label=label,
                )  # fmt: skip
        if name in logarithmic:
            axes.set_xscale("log")
        axes.set_title(f"{name}, best {_text(trials[best][1].get(name))}", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    figure.supylabel(goal)
    figure.supxlabel("dark: the first trials, yellow: the last", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return save_figure(figure, path)


def _defaults(trials: Sequence[tuple[float, Mapping[str, Any], bool]]) -> list[tuple[int, str, str, str]]:
    return [(index, _ORANGE, "s", "defaults") for index, (_, _, is_default) in enumerate(trials) if is_default][:1]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def draw_importance(shares: Mapping[str, float], path: Path) -> Path:
    """Draw how much of the goal's differences each hyper-parameter explains, the largest first."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = new_figure(6, 0.28 * len(ordered) + 1.2)
    axes = figure.subplots()
    axes.barh([name for name, _ in ordered], [share for _, share in ordered], color=_BLUE)
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.grid(alpha=0.25, axis="x")
    axes.margins(y=0.02)
    return save_figure(figure, path)


def draw_front(points: Sequence[tuple[float, float]], best: Sequence[int], names: Sequence[str], path: Path) -> Path:
    """Draw two goals against each other; `best` are the places in `points` that no other beats."""
    figure = new_figure(6, 5)
    axes = figure.subplots()
    axes.scatter(*zip(*points, strict=True), color=_BLUE, label="trial")
    front = sorted(points[index] for index in best)
    axes.plot(*zip(*front, strict=True), color=_ORANGE, marker="o", label="no other is better in both")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return save_figure(figure, path)
