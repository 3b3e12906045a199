"""Cityscapes: `leftImg8bit` and `gtFine` or `gtCoarse`, one folder per city."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.core.cityscapes import NAMES
from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import (
    INVALID,
    Layout,
    MaskRule,
    SemanticAugment,
    SemanticSplitFiles,
    list_pairs,
    replace_folder,
    require_semantic,
)

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # value of each class in masks
MAX_LABEL_ID = 33  # other ids up to here are unlabelled
IMAGE_SUFFIX, MASK_ENDINGS = "_leftImg8bit", ("_gtFine_labelIds", "_gtFine_labelTrainIds", "_gtCoarse_labelIds")


def cityscapes_tables(data: DataConfig) -> list[np.ndarray]:
    """Build the value tables of masks with class indices and of masks with Cityscapes' label ids.

    Raises:
        UserError: the data set does not have the 19 classes of Cityscapes.
    """
    config = require_semantic(data)
    if len(config.names) != len(NAMES):
        raise UserError(
            f"{data.source}: `semantic.names` has {len(config.names)} classes, but the format {config.format} has "
            f"{len(NAMES)} ({NAMES[0]} … {NAMES[-1]}); for other classes use the format folders with `ids:`"
        )
    indices = np.full(256, INVALID, np.int16)
    indices[: len(NAMES)] = np.arange(len(NAMES))
    indices[IGNORED_PIXEL] = IGNORED_PIXEL
    ids = np.full(256, INVALID, np.int16)
    ids[: MAX_LABEL_ID + 1] = ids[255] = IGNORED_PIXEL  # label id -1 (licence plate) is stored as 255
    ids[list(LABEL_IDS)] = np.arange(len(NAMES))
    return [indices, ids]


def cityscapes_image_folder(path: Path, split: str) -> Path:
    """Return the image folder of a split; the data YAML may name the folder that contains `leftImg8bit`."""
    inner = path / "leftImg8bit" / split
    return inner if inner.is_dir() else path


def cityscapes_mask_folders(folder: Path) -> list[Path]:
    """List the candidate mask folders of a city."""
    return replace_folder(folder, [("leftImg8bit", "gtFine"), ("leftImg8bit", "gtCoarse")]) or [folder]


def cityscapes_mask_stems(stem: str) -> tuple[str, ...]:
    """List the candidate mask stems of a Cityscapes image."""
    return tuple(stem.removesuffix(IMAGE_SUFFIX) + ending for ending in MASK_ENDINGS)


def uses_label_ids(stem: str) -> int:
    """Return the row of a mask in `cityscapes_tables`: 1 for label ids, 0 for class indices."""
    return int(stem.endswith("_labelIds"))


def read_cityscapes(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List images and masks, whose values are label ids or, in `labelTrainIds`, class indices."""
    rule = MaskRule(
        folders=cityscapes_mask_folders,
        stems=cityscapes_mask_stems,
        image_folder=cityscapes_image_folder,
        is_image=lambda name: f"{IMAGE_SUFFIX}." in name,
        table_of=uses_label_ids,
    )
    return list_pairs(data, split, rule, cityscapes_tables(data))


AUGMENT = SemanticAugment(base=1024, low=0.65, high=3.0, std=25.0, jitter=(0.45, 0.45, 0.45, 0.15))
SEMANTIC_READERS.register("cityscapes")(Layout(read_cityscapes, AUGMENT, options=()))
