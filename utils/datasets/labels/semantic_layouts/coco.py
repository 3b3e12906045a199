"""COCO images with PNG masks of class indices for some of them: from panoptic maps, or COCO-Stuff."""

from __future__ import annotations

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import (
    INVALID,
    Layout,
    MaskRule,
    SemanticSplitFiles,
    default_table,
    list_pairs,
    replace_folder,
    require_semantic,
)

MASK_FOLDERS = (
    ("images", "masks_semantic"),
    ("images", "stuffthingmaps"),
    ("images", "masks"),
    ("images", "annotations"),
)
_STUFF_CLASSES = 171
# COCO-Stuff masks have category id - 1; these ids from 1 to 182 are unused
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def _stuff_table() -> np.ndarray:
    table = np.full(256, INVALID, np.int16)
    table[[number - 1 for number in range(1, 183) if number not in _UNUSED_IDS]] = np.arange(_STUFF_CLASSES)
    table[IGNORED_PIXEL] = IGNORED_PIXEL
    return table


def read_coco(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List images and masks; images without a mask are dropped, since only parts of COCO have them.

    With 171 classes and no `ids:` the values are those of COCO-Stuff, otherwise class indices.
    """
    config = require_semantic(data)
    stuff = len(config.names) == _STUFF_CLASSES and "ids" not in config.options
    table = _stuff_table() if stuff else default_table(config)
    rule = MaskRule(folders=lambda folder: [*replace_folder(folder, MASK_FOLDERS), folder], only_labelled=True)
    return list_pairs(data, split, rule, [table])


SEMANTIC_READERS.register("coco")(Layout(read_coco))
