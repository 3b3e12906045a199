"""Feature maps of a network's layers as images and arrays (`--visualize`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from utils.core.contracts import Frame, Results
from utils.core.files import atomic_path
from utils.plots.figure_io import write_image
from utils.plots.prediction_sinks import UniqueNames

MAX_CHANNELS = 32  # of an image
_COLUMNS = 8
_MIN_TILE_PX = 96  # longer side of a channel; smaller ones are enlarged
_PERCENTILES = (1, 99)  # mapped to the ends of the colour map, because single outliers would darken everything else


class FeatureSink:
    """Prediction sink that writes a folder per frame with, for each layer, a PNG of 32 channels and an NPY of all.

    Args:
        folder: Output folder.
        maps: Layer name -> (B, C, H, W) output for the latest batch; updated by the caller.
    """

    stopped = False

    def __init__(self, folder: Path, maps: Mapping[str, Tensor]) -> None:
        """Take `maps`, which holds the (B, C, H, W) output of each layer for the batch that was run last."""
        self.folder, self.maps, self._names, self._count = folder, maps, UniqueNames(), 0

    def write(self, frame: Frame, results: Results, annotated: Callable[[], np.ndarray]) -> None:
        """Write the maps of one frame."""
        place = self.folder / self._names.frame_stem(frame)
        for name, values in self.maps.items():
            channels = values[results.info.index].float().cpu().numpy()
            with atomic_path(place / f"{name}.npy") as temporary:
                np.save(temporary, channels)
            write_image(place / f"{name}.png", feature_image(channels))
        self._count += 1

    def close(self) -> str:
        """Return a log text with the number of frames."""
        return f"feature maps of {self._count} image(s) in {self.folder}" if self._count else ""


def feature_image(channels: np.ndarray) -> np.ndarray:
    """Arrange the first 32 channels of a feature map in a grid, each with its own range of colours.

    Args:
        channels: (C, H, W).

    Returns:
        uint8 BGR image.
    """
    shown = channels[:MAX_CHANNELS]
    height, width = shown.shape[1:]
    zoom = max(1, -(-_MIN_TILE_PX // max(height, width)))
    rows = -(-len(shown) // _COLUMNS)
    step_y, step_x = height * zoom + 2, width * zoom + 2
    canvas = np.full((rows * step_y, min(_COLUMNS, len(shown)) * step_x, 3), 255, np.uint8)
    for i, channel in enumerate(shown):
        low, high = np.percentile(channel, _PERCENTILES)
        if high <= low:
            low, high = float(channel.min()), float(channel.max())
        grey = (np.clip((channel - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
        tile = cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)
        tile = cv2.resize(tile, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        top, left = (i // _COLUMNS) * step_y, (i % _COLUMNS) * step_x
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
