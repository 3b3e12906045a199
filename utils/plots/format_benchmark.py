"""Bar chart of the export benchmark: time per image of every format, with file size and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.plots.figure_io import new_figure, save_figure


def draw_benchmark(rows: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw a bar per timed format, the fastest on top.

    Args:
        rows: One per format, with `format`, `milliseconds` per image, `megabytes` and `scores`, the last three None
            where unknown.
        path: File to write.

    Returns:
        `path`, None if no format was timed.
    """
    timed = sorted((row for row in rows if row["milliseconds"] is not None), key=lambda row: -row["milliseconds"])
    if not timed:
        return None
    figure = new_figure(8, 1.2 + 0.45 * len(timed))
    axes = figure.subplots()
    times = [row["milliseconds"] for row in timed]
    bars = axes.barh([row["format"] for row in timed], times, color="#1F77B4", height=0.6)
    axes.bar_label(bars, [_bar_label(row) for row in timed], padding=4, fontsize=9)
    axes.set_xlim(0, 1.6 * max(times))
    axes.set_xlabel("milliseconds per image (median)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return save_figure(figure, path)


def _bar_label(row: Mapping[str, Any]) -> str:
    parts = [f"{row['milliseconds']:.1f} ms"]
    if row["megabytes"] is not None:
        parts.append(f"{row['megabytes']:.1f} MB")
    parts += [f"{name.rpartition('/')[2]} {score:.3f}" for name, score in (row["scores"] or {}).items()]
    return ", ".join(parts)
