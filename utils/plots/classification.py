"""Plots for image classification: batches with class names, and images per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.core.contracts import Batch, Loader, Results
from utils.plots.batches import draw_grid
from utils.plots.chart import Area, blank_canvas
from utils.plots.draw import draw_label, palette_colour
from utils.plots.figure_io import write_image
from utils.plots.label_statistics import draw_class_bars, names_height
from utils.plots.text_rendering import Colour, class_name

MIN_TILE_PX = 160  # smaller images are enlarged, to make room for a name
_MAX_TEXT = 40  # characters
_CORRECT: Colour = (60, 140, 30)  # green
_WRONG: Colour = (40, 40, 200)  # red
_UNLABELLED: Colour = (114, 114, 114)


def draw_class_batch(batch: Batch, path: Path, names: Sequence[str], results: Sequence[Results] | None = None) -> None:
    """Draw up to 16 images of a batch with their labelled or predicted classes.

    Args:
        batch: Images and classes.
        path: File to write.
        names: Class names.
        results: Predictions to write instead of the labels, green if they are correct and red otherwise.
    """
    labels = [-1] * len(batch) if batch.classes is None else batch.classes.tolist()

    def decorate(tile: np.ndarray, index: int) -> None:
        label = labels[index]
        text, colour = ("no label", _UNLABELLED) if label < 0 else (class_name(names, label), palette_colour(label))
        probabilities = results[index].probabilities if results is not None else None
        if probabilities is not None:
            predicted = int(probabilities.argmax())
            colour = _CORRECT if predicted == label else _WRONG
            text = f"{class_name(names, predicted)} {float(probabilities[predicted]):.2f}"
        draw_label(tile, text[:_MAX_TEXT], (4, 4), colour, max(12, min(22, tile.shape[0] // 14)), line_px=0)

    draw_grid(batch, path, decorate, min_tile_px=MIN_TILE_PX)


def draw_class_counts(loader: Loader, folder: Path, names: Sequence[str]) -> None:
    """Draw labels.jpg, the number of images of each class.

    Args:
        loader: Loader with class labels.
        folder: Folder of the file.
        names: Class names.
    """
    counts = loader.class_counts
    below = names_height(names)
    canvas = blank_canvas(round(150 * max(6.0, min(16.0, 0.5 * len(counts)))), 600 + below)
    area = Area(110, 55, canvas.shape[1] - 20, canvas.shape[0] - below - 20)
    draw_class_bars(canvas, area, counts, names, "images", f"{int(counts.sum())} images of {len(counts)} classes")
    write_image(Path(folder) / "labels.jpg", canvas)
