"""BDD100K's semantic segmentation: `images/10k` and `labels/sem_seg/masks`, or the older `seg` folder."""

from __future__ import annotations

from pathlib import Path

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Layout, Rule, SemanticListing, list_pairs, swapped
from utils.datasets.labels.semantic_layouts.citybdd import DRAWS
from utils.datasets.labels.semantic_layouts.cityscapes import street_tables


def _folders(folder: Path) -> list[Path]:
    """Return where masks may lie: `images/10k/train` has them in `labels/sem_seg/masks/train`."""
    newer = swapped(folder, [("10k", "sem_seg/masks")])
    return [
        *(path for inner in newer for path in swapped(inner, [("images", "labels")])),
        *swapped(folder, [("images", "labels"), ("images", "labels/sem_seg/masks"), ("images", "masks")]),
        folder,
    ]


def read_bdd100k(data: DataConfig, split: str) -> SemanticListing:
    """Return images and masks of class numbers (`x.png`, before 2020 `x_train_id.png`)."""
    rule = Rule(folders=_folders, stems=lambda stem: (stem, f"{stem}_train_id"))
    return list_pairs(data, split, rule, street_tables(data)[:1])


SEMANTIC_READERS.register("bdd100k")(Layout(read_bdd100k, DRAWS, takes=()))
