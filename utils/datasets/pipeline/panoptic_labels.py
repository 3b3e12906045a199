"""Panoptic labels of images that are indexed for their boxes, for evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from utils.core.load_request import LoadRequest
from utils.core.segment_types import PanopticLabels
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.panoptic_table import open_panoptic_split
from utils.datasets.labels.readers.coco_panoptic import match_panoptic_images

ReadPanoptic = Callable[[int], tuple[PanopticLabels, str]]  # labels of an image, and the fault of its map


def open_panoptic_labels(request: LoadRequest, index: Index) -> ReadPanoptic:
    """Prepare to read the panoptic labels of a split by the rows of its index.

    Args:
        request: split and options.
        index: images of the split.

    Returns:
        A function that reads the labels of an image; those of a map that became unreadable are void.

    Raises:
        UserError: the annotations are unusable.
    """
    found = open_panoptic_split(request.data, request.split)
    images, rows = match_panoptic_images(request.data, request.split, found)
    row_of = {os.path.normpath(image): row for image, row in zip(images, rows, strict=True)}
    position = np.array([row_of[os.path.normpath(index.path(image))] for image in range(len(index))])

    def read(image: int) -> tuple[PanopticLabels, str]:
        try:
            labels, shape = found.labels(int(position[image])), tuple(index.shapes_hw[image])
            if labels.numbers.shape != shape:
                raise ImageFault(f"{found.map_path(int(position[image]))}: no longer {shape[1]} x {shape[0]} pixels")
        except ImageFault as fault:
            return PanopticLabels(np.zeros(index.shapes_hw[image], np.uint8), (), ()), str(fault)
        return labels, ""

    return read
