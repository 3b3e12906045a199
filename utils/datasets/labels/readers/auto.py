"""No format given: a look at the files tells which it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import READERS
from utils.datasets.image_files import IMAGE_SUFFIXES
from utils.datasets.labels.annotation_paths import annotation_places, lines_of, suffix_of
from utils.datasets.labels.label_index import Listing
from utils.datasets.labels.readers.coco import read_coco
from utils.datasets.labels.readers.labelme import read_labelme
from utils.datasets.labels.readers.voc import read_voc
from utils.datasets.labels.readers.yolo import label_path, read_yolo

_LOOKED_AT = 200
_READERS: dict[str, Callable[[DataConfig, str], Listing]] = {
    "yolo": read_yolo,
    "coco": read_coco,
    "voc": read_voc,
    "labelme": read_labelme,
}


@READERS.register("auto")
def read_auto(data: DataConfig, split: str) -> Listing:
    """Return what the reader of the format that is there finds."""
    return _READERS[guess_format(data, split)](data, split)


def guess_format(data: DataConfig, split: str) -> str:
    """Return which label format a split has.

    Text files beside the images win, then a COCO JSON under `annotations:`, then XML, then JSON. With none of them it
    is yolo, whose images need no labels.
    """
    images: list[str] = []
    for place in data.split(split):
        images += _some_images(place, data)
        if place.is_file() and _is_name_list(place):
            return "voc"
    if any(os.path.exists(label_path(image)) for image in images):  # noqa: PTH110 - see below
        return "yolo"
    if split in data.annotations and data.annotations[split].is_file():
        return "coco"
    for suffix, name in ((".xml", "voc"), (".json", "labelme")):
        if any(os.path.exists(place) for image in images for place in annotation_places(image, suffix)):  # noqa: PTH110
            return name
    return "yolo"


def _some_images(place: Path, data: DataConfig) -> list[str]:
    if place.is_dir():
        walked = (os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names)  # noqa: PTH118
        return list(islice((path for path in walked if suffix_of(path) in IMAGE_SUFFIXES), _LOOKED_AT))
    if suffix_of(place.name) in IMAGE_SUFFIXES:
        return [str(place)]
    try:
        lines = [line for _, line in lines_of(place)[:_LOOKED_AT]]
    except UserError:  # the reader will say what is wrong with it
        return []
    return [os.path.normpath(base / line) for base in (place.parent, data.root) for line in lines if "\0" not in line]


def _is_name_list(place: Path) -> bool:
    """Tell whether a list is one of VOC's: names without suffix, and a folder JPEGImages above it."""
    if suffix_of(place.name) in IMAGE_SUFFIXES or not any((up / "JPEGImages").is_dir() for up in place.parents):
        return False
    try:
        lines = lines_of(place)
    except UserError:
        return False
    return bool(lines) and suffix_of(lines[0][1]) not in IMAGE_SUFFIXES
