"""Cityscapes: `leftImg8bit` and `gtFine`, a folder for each city (behaviour.md 12.6)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.core.cityscapes import LABEL_IDS, MOST_LABEL_ID, NAMES
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import (
    IGNORED_PIXEL,
    OUTSIDE,
    Draws,
    Layout,
    Rule,
    SemanticListing,
    list_pairs,
    semantic_of,
    swapped,
)

IMAGE, TRUTHS = "_leftImg8bit", ("_gtFine_labelIds", "_gtFine_labelTrainIds", "_gtCoarse_labelIds")
TREES = [("leftImg8bit", "gtFine"), ("leftImg8bit", "gtCoarse")]


def street_tables(data: DataConfig) -> list[np.ndarray]:
    """Return what the values of masks with class numbers, and of those with Cityscapes' label ids, stand for."""
    config = semantic_of(data)
    if len(config.names) != len(NAMES):
        raise UserError(
            f"{data.source}: `semantic.names` lists {len(config.names)} classes, the format {config.format} has "
            f"{len(NAMES)} ({NAMES[0]} … {NAMES[-1]}); for others use the format folders with `ids:`"
        )
    numbers = np.full(256, OUTSIDE, np.int16)
    numbers[: len(NAMES)] = np.arange(len(NAMES))
    numbers[IGNORED_PIXEL] = IGNORED_PIXEL
    ids = np.full(256, OUTSIDE, np.int16)
    ids[: MOST_LABEL_ID + 1] = ids[255] = IGNORED_PIXEL  # -1, a licence plate, is stored as 255
    ids[list(LABEL_IDS)] = np.arange(len(NAMES))
    return [numbers, ids]


def tree_place(place: Path, split: str) -> Path:
    """Return the folder of the images, where the YAML may name the one that holds `leftImg8bit`."""
    inner = place / "leftImg8bit" / split
    return inner if inner.is_dir() else place


def tree_folders(folder: Path) -> list[Path]:
    """Return where the masks of a city's images may lie."""
    return swapped(folder, TREES) or [folder]


def truth_stems(stem: str) -> tuple[str, ...]:
    """Return the names that the mask of an image of Cityscapes may have."""
    return tuple(stem.removesuffix(IMAGE) + truth for truth in TRUTHS)


def has_label_ids(stem: str) -> int:
    """Return the number of the table for a mask: 1 for label ids."""
    return int(stem.endswith("_labelIds"))


def read_cityscapes(data: DataConfig, split: str) -> SemanticListing:
    """Return images and masks; label ids become class numbers, `labelTrainIds` are ones."""
    rule = Rule(
        folders=tree_folders,
        stems=truth_stems,
        place=tree_place,
        wanted=lambda name: f"{IMAGE}." in name,
        table_of=has_label_ids,
    )
    return list_pairs(data, split, rule, street_tables(data))


DRAWS = Draws(base=1024, low=0.65, high=3.0, std=25.0, jitter=(0.45, 0.45, 0.45, 0.15))
SEMANTIC_READERS.register("cityscapes")(Layout(read_cityscapes, DRAWS, takes=()))
