"""Cityscapes with BDD100K's images in its tree, as one more city of .jpg files with class numbers in .png files."""

from __future__ import annotations

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Draws, Layout, Rule, SemanticListing, list_pairs
from utils.datasets.labels.semantic_layouts.cityscapes import (
    IMAGE,
    has_label_ids,
    street_tables,
    tree_folders,
    tree_place,
    truth_stems,
)


def _wanted(name: str) -> bool:
    """Tell images from masks: those of BDD100K may lie beside their images."""
    return f"{IMAGE}." in name or name.lower().endswith((".jpg", ".jpeg"))


def _stems(stem: str) -> tuple[str, ...]:
    return truth_stems(stem) if stem.endswith(IMAGE) else (stem, f"{stem}_train_id")


def read_citybdd(data: DataConfig, split: str) -> SemanticListing:
    """Return images and masks of both sources."""
    rule = Rule(
        folders=lambda folder: [*tree_folders(folder), folder],
        stems=_stems,
        place=tree_place,
        wanted=_wanted,
        table_of=has_label_ids,
    )
    return list_pairs(data, split, rule, street_tables(data))


DRAWS = Draws(base=1024, low=0.65, high=2.0, std=40.0, jitter=(0.4, 0.4, 0.4, 0.05))
SEMANTIC_READERS.register("citybdd")(Layout(read_citybdd, DRAWS, takes=()))
