"""What the options of convert.py say, as records; light, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FROM = ("yolo", "coco", "voc", "labelme", "cityscapes", "bdd100k", "kitti", "csv", "masks", "panoptic")
TO = ("yolo", "coco", "voc", "labelme", "masks")
IMAGES = ("copy", "link", "none")
STYLES = ("auto", "boxes", "polygons")
SHAPES = ("all", "rectangle", "polygon")
STRATIFY = ("labels", "folders", "none")


@dataclass(frozen=True)
class LabelSettings:
    """A conversion of labels."""

    source: Path  # a data YAML, a folder, or the one file of the format
    out: Path
    source_format: str
    target_format: str
    names: str = ""  # a file of names, a data YAML, or names with commas between
    split: str = "train"  # what the images of a source without splits become
    pictures: str = ""  # folder of the images, where it is not beside the labels
    masks: str = ""  # folder of the masks
    images: str = "copy"
    style: str = "auto"  # boxes or polygons
    decimals: int | None = None  # None: 6 of normalised numbers, 2 of pixels
    least_px: int = 0  # smaller objects are left out
    background: int | None = None  # value of pixels nobody labelled; None: 255, or the class _background_
    only: str = "all"  # kinds of LabelMe shapes
    shift_centre: bool = False
    exist_ok: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class SplitSettings:
    """A division into training, validation and test images."""

    source: Path
    out: Path
    shares: tuple[float, ...] = (0.8, 0.2)
    seed: int = 0
    stratify: str = "labels"
    group: str = ""  # regular expression on the path below the source; images with the same match stay together
    source_format: str = "auto"
    names: str = ""
    exist_ok: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class CheckpointSettings:
    """A conversion of weights."""

    source: Path
    out: Path
    half: bool = False
    exist_ok: bool = False
    dry_run: bool = False
