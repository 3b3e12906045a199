"""Feature maps of a network's layers as pictures and arrays (`--visualize`)."""

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

SHOWN_CHANNELS = 32  # behaviour.md 5.3
_COLUMNS = 8
_TILE_PX = 96  # least side of a map in the picture


class FeatureSink:
    """For every frame a folder with, per layer, a png of the first 32 channels and an npy of all of them."""

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
        """Return what was written."""
        return f"feature maps of {self._count} image(s) in {self.folder}" if self._count else ""


def feature_image(channels: np.ndarray) -> np.ndarray:
    """Return the first 32 of (C, H, W) maps side by side, each from its small (dark) to its large values.

    The lowest and highest hundredth share the end's colour: single pixels would leave all others dark.
    """
    shown = channels[:SHOWN_CHANNELS]
    height, width = shown.shape[1:]
    enlarged = max(1, -(-_TILE_PX // max(height, width)))
    rows = -(-len(shown) // _COLUMNS)
    step_y, step_x = height * enlarged + 2, width * enlarged + 2
    canvas = np.full((rows * step_y, min(_COLUMNS, len(shown)) * step_x, 3), 255, np.uint8)
    for i, channel in enumerate(shown):
        low, high = np.percentile(channel, (1, 99))
        if high <= low:  # nearly all of one value
            low, high = float(channel.min()), float(channel.max())
        grey = (np.clip((channel - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
        tile = cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)
        tile = cv2.resize(tile, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_NEAREST)
        top, left = (i // _COLUMNS) * step_y, (i % _COLUMNS) * step_x
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
