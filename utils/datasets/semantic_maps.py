"""The class maps of a split, by number; on request all of them in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.dist import world_size
from utils.core.log import LOGGER, progress
from utils.datasets.cache import RESERVE, available_memory, decoding_pool
from utils.datasets.images import ImageFault
from utils.datasets.semantic_masks import class_numbers, read_values
from utils.datasets.semantic_scan import SemanticIndex


class Maps:
    """Class maps at the size of their images. A mask that cannot be read any more has no labels."""

    def __init__(self, index: SemanticIndex) -> None:
        self.index = index
        self.all: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def read(self, number: int) -> tuple[np.ndarray, str]:
        """Return the (H, W) uint8 classes of the pixels, and what is wrong with the file ("" for nothing)."""
        if self.all is not None:
            return self.all[number], ""
        path = self.index.masks.path(number)
        height, width = (int(side) for side in self.index.images.shapes_hw[number])
        try:
            values = read_values(Path(path))
            if values.shape != (height, width):
                raise ImageFault(f"{path}: no longer {width} x {height} pixels")
        except ImageFault as fault:
            return np.full((height, width), IGNORED_PIXEL, np.uint8), str(fault)
        return class_numbers(values, self.index.tables[self.index.table_of[number]]), ""

    def keep_all(self) -> None:
        """Read everything into memory if there is room for it."""
        need = RESERVE * float(self.index.images.shapes_hw.astype(np.int64).prod(1).sum()) * world_size()
        free = available_memory()
        if need > free:
            LOGGER.warning(f"--cache ram: masks need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; not kept")
            return
        with decoding_pool() as pool:
            read = pool.map(self.read, range(len(self)))
            found = list(progress(read, len(self), f"caching {need / 1e9:.1f} GB of masks in memory", "mask"))
        for fault in filter(None, (fault for _, fault in found)):
            LOGGER.warning(f"{fault}; none of its pixels counts")
        self.all = [classes for classes, _ in found]
