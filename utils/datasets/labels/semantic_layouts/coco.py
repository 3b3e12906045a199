"""COCO's images with a PNG of class numbers for those that have one: panoptic maps, or COCO-Stuff's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import (
    IGNORED_PIXEL,
    OUTSIDE,
    Layout,
    Rule,
    SemanticListing,
    list_pairs,
    plain_table,
    semantic_of,
    swapped,
)

SWAPS = (("images", "masks_semantic"), ("images", "stuffthingmaps"), ("images", "masks"), ("images", "annotations"))
_STUFF_CLASSES = 171
# COCO-Stuff's maps hold the category's id minus 1; these ids from 1 to 182 are no category
_NO_CATEGORY = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def _stuff_table() -> np.ndarray:
    table = np.full(256, OUTSIDE, np.int16)
    table[[number - 1 for number in range(1, 183) if number not in _NO_CATEGORY]] = np.arange(_STUFF_CLASSES)
    table[IGNORED_PIXEL] = IGNORED_PIXEL
    return table


def read_coco(data: DataConfig, split: str) -> SemanticListing:
    """Return images and masks; images without one are left out, since only parts of COCO carry them.

    With 171 classes and no `ids:` the values are COCO-Stuff's, with its gaps; else they are class numbers.
    """
    config = semantic_of(data)
    stuff = len(config.names) == _STUFF_CLASSES and "ids" not in config.options
    table = _stuff_table() if stuff else plain_table(config)
    rule = Rule(folders=_folders, only_labelled=True)
    return list_pairs(data, split, rule, [table])


def _folders(folder: Path) -> list[Path]:
    return [*swapped(folder, SWAPS), folder]


SEMANTIC_READERS.register("coco")(Layout(read_coco))
