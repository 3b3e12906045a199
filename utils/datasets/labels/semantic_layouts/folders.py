"""A folder of images and a folder of PNG masks with the same names; also own data as multiyolov5 lays it out."""

from __future__ import annotations

from pathlib import Path

from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Layout, Rule, SemanticListing, list_pairs, swapped

SWAPS = (("segimages", "seglabels"), ("images", "masks"), ("images", "seglabels"), ("images", "labels"))


def _beside(folder: Path) -> list[Path]:
    return [*swapped(folder, SWAPS), folder.with_name(folder.name + "_masks"), folder]


def _place(place: Path, split: str) -> Path:
    """Return the folder of the images, where the YAML may name the one that holds `segimages`."""
    inner = place / "segimages" / split
    return inner if inner.is_dir() else place


def _stems(stem: str) -> tuple[str, ...]:
    """Return the names a mask may have: its image's, or with an ending of its own."""
    bare = stem.removesuffix("_img").removesuffix("_image")
    return tuple(dict.fromkeys((stem, f"{stem}_mask", f"{bare}_mask", f"{bare}_gt")))


def read_folders(data: DataConfig, split: str) -> SemanticListing:
    """Return images and masks: `segimages` and `seglabels`, `images` and `masks`, or what `masks:` says."""
    return list_pairs(data, split, Rule(folders=_beside, stems=_stems, place=_place))


SEMANTIC_READERS.register("folders")(Layout(read_folders))
