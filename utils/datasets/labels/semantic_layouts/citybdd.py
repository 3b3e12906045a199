"""Cityscapes and BDD100K in one tree, as multiyolov5 mixes them: BDD100K's .jpg files are a city of their own."""

from __future__ import annotations

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Layout, MaskRule, SemanticAugment, SemanticSplitFiles, list_pairs
from utils.datasets.labels.semantic_layouts.cityscapes import (
    IMAGE_SUFFIX,
    cityscapes_image_folder,
    cityscapes_mask_folders,
    cityscapes_mask_stems,
    cityscapes_tables,
    uses_label_ids,
)


def _is_image(name: str) -> bool:
    """Tell images from masks: BDD100K's masks may be beside the images."""
    return f"{IMAGE_SUFFIX}." in name or name.lower().endswith((".jpg", ".jpeg"))


def _mask_stems(stem: str) -> tuple[str, ...]:
    return cityscapes_mask_stems(stem) if stem.endswith(IMAGE_SUFFIX) else (stem, f"{stem}_train_id")


def read_citybdd(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List the images and masks of both sources."""
    rule = MaskRule(
        folders=lambda folder: [*cityscapes_mask_folders(folder), folder],
        stems=_mask_stems,
        image_folder=cityscapes_image_folder,
        is_image=_is_image,
        table_of=uses_label_ids,
    )
    return list_pairs(data, split, rule, cityscapes_tables(data))


AUGMENT = SemanticAugment(base=1024, low=0.65, high=2.0, std=40.0, jitter=(0.4, 0.4, 0.4, 0.05))
SEMANTIC_READERS.register("citybdd")(Layout(read_citybdd, AUGMENT, options=()))
