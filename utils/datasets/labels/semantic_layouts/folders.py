"""A folder of images and a folder of PNG masks with the same names, also in multiyolov5's layout."""

from __future__ import annotations

from pathlib import Path

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Layout, MaskRule, SemanticSplitFiles, list_pairs, replace_folder

MASK_FOLDERS = (("segimages", "seglabels"), ("images", "masks"), ("images", "seglabels"), ("images", "labels"))


def _mask_folders(folder: Path) -> list[Path]:
    return [*replace_folder(folder, MASK_FOLDERS), folder.with_name(folder.name + "_masks"), folder]


def _image_folder(path: Path, split: str) -> Path:
    """Return the image folder of a split; the data YAML may name the folder that contains `segimages`."""
    inner = path / "segimages" / split
    return inner if inner.is_dir() else path


def _mask_stems(stem: str) -> tuple[str, ...]:
    """List the candidate mask stems: that of the image, or with a suffix such as `_mask`."""
    bare = stem.removesuffix("_img").removesuffix("_image")
    return tuple(dict.fromkeys((stem, f"{stem}_mask", f"{bare}_mask", f"{bare}_gt")))


def read_folders(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List images and masks: `segimages` and `seglabels`, `images` and `masks`, or the folders in `masks:`."""
    return list_pairs(data, split, MaskRule(folders=_mask_folders, stems=_mask_stems, image_folder=_image_folder))


SEMANTIC_READERS.register("folders")(Layout(read_folders))
