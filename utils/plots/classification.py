"""Whole-image classes as pictures: batches with their names, images per class, the surest classes on an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.core.contracts import Batch, Loader, Results
from utils.plots.batches import draw_grid
from utils.plots.draw import PALETTE_BGR, class_name, draw_label, palette_colour
from utils.plots.figure_io import escape_mathtext, new_figure, save_figure

NAMED_CLASSES = 30
TILE_PX = 160  # room for a name
_RIGHT, _WRONG = (60, 140, 30), (40, 40, 200)  # green, red


def draw_class_batch(batch: Batch, path: Path, names: Sequence[str], results: Sequence[Results] | None = None) -> None:
    """Write up to 16 images of `batch` to `path`, each with its class, or with the one found, green if it is right."""
    labels = [-1] * len(batch) if batch.classes is None else batch.classes.tolist()

    def decorate(tile: np.ndarray, index: int) -> None:
        label = labels[index]
        text, colour = (
            (class_name(names, label), palette_colour(label)) if label >= 0 else ("no label", (114, 114, 114))
        )
        probabilities = results[index].probabilities if results is not None else None
        if probabilities is not None:
            found = int(probabilities.argmax())
            colour = _RIGHT if found == label else _WRONG
            text = f"{class_name(names, found)} {float(probabilities[found]):.2f}"
        draw_label(tile, text[:40], (4, 4), colour, max(12, min(22, tile.shape[0] // 14)), line_px=0)

    draw_grid(batch, path, decorate, least_px=TILE_PX)


def draw_class_counts(loader: Loader, folder: Path, names: Sequence[str]) -> None:
    """Write labels.jpg, the number of images of each class, to `folder`."""
    counts = loader.class_counts
    figure = new_figure(max(6.0, min(16.0, 0.5 * len(counts))), 5)
    axes = figure.add_subplot()
    colours = PALETTE_BGR[np.arange(len(counts)) % len(PALETTE_BGR), ::-1] / 255
    axes.bar(np.arange(len(counts)), counts, color=colours)
    axes.set(ylabel="images", title=f"{int(counts.sum())} images of {len(counts)} classes")
    if len(names) <= NAMED_CLASSES:
        axes.set_xticks(range(len(names)), [escape_mathtext(name) for name in names], rotation=90)
    else:
        axes.set_xlabel("class")
    save_figure(figure, Path(folder) / "labels.jpg")
