"""The class maps of a split, by number; on request all of them in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.distributed import world_size
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest
from utils.core.log import LOGGER, progress
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.semantic_mask_files import class_numbers, read_values
from utils.datasets.labels.semantic_scan import SemanticIndex, build_semantic_index
from utils.datasets.pipeline.image_cache import RESERVE, available_memory, decoding_pool


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


class MapsBeside:
    """The class maps of images that have boxes; those without a map have no labelled pixel."""

    def __init__(self, maps: Maps, images: Index) -> None:
        self.maps, self.shapes_hw = maps, images.shapes_hw
        rows = {maps.index.images.path(row): row for row in range(len(maps))}
        paths = [images.path(number) for number in range(len(images))]
        if any(path not in rows for path in paths):  # the same files may be named in two ways
            rows |= {os.path.realpath(path): row for path, row in rows.items()}
            paths = [path if path in rows else os.path.realpath(path) for path in paths]
        self.rows = np.array([rows.get(path, -1) for path in paths])  # (n,) row in `maps`, -1 for none

    def read(self, number: int) -> tuple[np.ndarray, str]:
        """Return the (H, W) uint8 classes of an image's pixels, and what is wrong with the file."""
        row = int(self.rows[number])
        if row >= 0:
            return self.maps.read(row)
        height, width = (int(side) for side in self.shapes_hw[number])
        return np.full((height, width), IGNORED_PIXEL, np.uint8), ""


def maps_beside(request: LoadRequest, images: Index) -> MapsBeside:
    """Return the class maps of the split's images, which have boxes too. UserError: none of them has a map."""
    if request.quad:
        raise UserError("--quad is not possible with a class per pixel")
    data, split = request.data, request.split
    found = MapsBeside(Maps(build_semantic_index(data, split, request.allow_label_faults)), images)
    having = int((found.rows >= 0).sum())
    if not having:
        raise UserError(
            f"{data.source}: none of the images of `{split}:` is among those of `semantic.{split}:`; boxes and pixels "
            "of different images cannot share a mosaic"
        )
    if having < len(found.rows):
        LOGGER.info(f"{split}: {having} of {len(found.rows)} images have a class per pixel besides boxes")
    return found
