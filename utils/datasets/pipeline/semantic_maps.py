"""Semantic maps of images that are indexed for their boxes, for mosaics of both kinds of label."""

from __future__ import annotations

import os

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest
from utils.core.log import LOGGER
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.semantic_scan import SemanticIndex, build_semantic_index


class AlignedMaps:
    """Semantic maps by the rows of another index; images without a map are unlabelled.

    Args:
        maps: images with semantic maps.
        images: images that the maps are looked up for.
    """

    def __init__(self, maps: SemanticIndex, images: Index) -> None:
        self.maps, self.shapes_hw = maps, images.shapes_hw
        rows = {maps.images.path(row): row for row in range(len(maps))}
        paths = [images.path(number) for number in range(len(images))]
        if any(path not in rows for path in paths):  # one file may have two paths
            rows |= {os.path.realpath(path): row for path, row in rows.items()}
            paths = [path if path in rows else os.path.realpath(path) for path in paths]
        self.rows = np.array([rows.get(path, -1) for path in paths])  # (n,) row in `maps`, -1 for none

    def read_map(self, image: int) -> tuple[np.ndarray, str]:
        """Read the (H, W) uint8 map of an image and the fault of its file, see `SemanticIndex.read_map`."""
        row = int(self.rows[image])
        if row >= 0:
            return self.maps.read_map(row)
        height, width = (int(side) for side in self.shapes_hw[image])
        return np.full((height, width), IGNORED_PIXEL, np.uint8), ""


def align_maps(request: LoadRequest, images: Index) -> AlignedMaps:
    """Look up the semantic maps of a split's images.

    Raises:
        UserError: no image has a map, or --quad is requested.
    """
    if request.quad:
        raise UserError("--quad cannot be combined with semantic maps")
    data, split = request.data, request.split
    found = AlignedMaps(build_semantic_index(data, split, request.allow_label_faults), images)
    count = int((found.rows >= 0).sum())
    if not count:
        raise UserError(
            f"{data.source}: `{split}:` and `semantic.{split}:` have no image in common; a mosaic needs boxes and "
            "semantic maps of the same images"
        )
    if count < len(found.rows):
        LOGGER.info(f"{split}: {count} of {len(found.rows)} images with boxes have a semantic map")
    return found
