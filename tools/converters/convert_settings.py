"""Settings of convert.py as records. Field names follow the options; convert-report.json lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

IMAGES = ("copy", "link", "none")
STYLES = ("auto", "boxes", "polygons")
SHAPES = ("all", "rectangle", "polygon")
STRATIFY = ("labels", "folders", "none")


@dataclass(frozen=True)
class LabelSettings:
    """Settings of a label conversion."""

    source: Path  # a data YAML, a folder, or the single file of the format
    out: Path
    source_format: str
    target_format: str
    names: str = ""  # a file with one name per line, a data YAML, or comma-separated names
    split: str = "train"  # split of the images of a source that has none
    pictures: str = ""  # folder of the images where it is not beside the labels
    masks: str = ""  # folder of the masks
    images: str = "copy"
    style: str = "auto"
    decimals: int | None = None  # None: 6 for normalised numbers, 2 for pixels
    least_px: int = 0  # minimum area of objects in pixels
    background: int | None = None  # value of unlabelled pixels; None: the class _background_, else 255
    only: str = "all"  # kinds of LabelMe shapes
    shift_centre: bool = False
    exist_ok: bool = False
    dry_run: bool = False
    stuff: tuple[str, ...] = ()  # classes that are no things, as the source says


@dataclass(frozen=True)
class SplitSettings:
    """Settings of a division into training, validation and test images."""

    source: Path
    out: Path
    shares: tuple[float, ...] = (0.8, 0.2)  # relative sizes of train, val and test
    seed: int = 0
    stratify: str = "labels"
    group: str = ""  # regular expression on paths relative to the source; images with equal matches stay together
    source_format: str = "auto"
    names: str = ""
    exist_ok: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ShardSettings:
    """Settings of writing tar shards."""

    source: Path  # a data YAML or folder
    out: Path
    shard_mb: float = 500.0
    exist_ok: bool = False


@dataclass(frozen=True)
class CheckpointSettings:
    """Settings of a checkpoint conversion."""

    source: Path
    out: Path
    half: bool = False
    exist_ok: bool = False
    dry_run: bool = False
