"""BDD100K semantic segmentation: `images/10k` and `labels/sem_seg/masks`, or the older `seg` folder."""

from __future__ import annotations

from pathlib import Path

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Layout, MaskRule, SemanticSplitFiles, list_pairs, replace_folder
from utils.datasets.labels.semantic_layouts.citybdd import AUGMENT
from utils.datasets.labels.semantic_layouts.cityscapes import cityscapes_tables


def _mask_folders(folder: Path) -> list[Path]:
    """List the candidate mask folders: the masks of `images/10k/train` are in `labels/sem_seg/masks/train`."""
    newer = replace_folder(folder, [("10k", "sem_seg/masks")])
    return [
        *(path for inner in newer for path in replace_folder(inner, [("images", "labels")])),
        *replace_folder(folder, [("images", "labels"), ("images", "labels/sem_seg/masks"), ("images", "masks")]),
        folder,
    ]


def read_bdd100k(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List images and masks with class indices (`x.png`, before 2020 `x_train_id.png`)."""
    rule = MaskRule(folders=_mask_folders, stems=lambda stem: (stem, f"{stem}_train_id"))
    return list_pairs(data, split, rule, cityscapes_tables(data)[:1])


SEMANTIC_READERS.register("bdd100k")(Layout(read_bdd100k, AUGMENT, options=()))
