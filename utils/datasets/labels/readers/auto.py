"""Format `auto`: detects the label format of a split from its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.input_files import walk_files
from utils.datasets import READERS
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.labels.annotation_paths import annotation_candidates, read_list, suffix_of
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.readers.coco import read_coco
from utils.datasets.labels.readers.labelme import read_labelme
from utils.datasets.labels.readers.voc import read_voc
from utils.datasets.labels.readers.yolo import label_path, read_yolo
from utils.datasets.shards.shard_set import is_shards

_SAMPLED_IMAGES = 200  # whose annotation files are looked for
_READERS: dict[str, Callable[[DataConfig, str], SplitFiles]] = {
    "yolo": read_yolo,
    "coco": read_coco,
    "voc": read_voc,
    "labelme": read_labelme,
}


@READERS.register("auto")
def read_auto(data: DataConfig, split: str) -> SplitFiles:
    """Read a split with the reader of its detected format."""
    name = detect_format(data, split)
    return (_READERS[name] if name in _READERS else READERS.get(name))(data, split)


def detect_format(data: DataConfig, split: str) -> str:
    """Detect the label format of a split.

    Returns:
        `shards` for tar files; else the first that is found of `yolo` (text files), `coco` (a JSON under
        `annotations:`), `voc` (XML files) and `labelme` (JSON files); without any of them `yolo`, whose images need
        no labels.
    """
    if all(is_shards(source) for source in data.split(split)):
        return "shards"
    images: list[str] = []
    for source in data.split(split):
        images += _sample_images(source, data)
        if source.is_file() and _is_name_list(source):
            return "voc"
    if any(os.path.exists(label_path(image)) for image in images):  # noqa: PTH110 - faster than a Path per image
        return "yolo"
    if split in data.annotations and data.annotations[split].is_file():
        return "coco"
    for suffix, name in ((".xml", "voc"), (".json", "labelme")):
        if any(os.path.exists(path) for image in images for path in annotation_candidates(image, suffix)):  # noqa: PTH110
            return name
    return "yolo"


def _sample_images(source: Path, data: DataConfig) -> list[str]:
    if source.is_dir():
        walked = (os.path.join(folder, name) for folder, names in walk_files(source) for name in names)  # noqa: PTH118
        return list(islice((path for path in walked if suffix_of(path) in IMAGE_SUFFIXES), _SAMPLED_IMAGES))
    if suffix_of(source.name) in IMAGE_SUFFIXES:
        return [str(source)]
    try:
        lines = [line for _, line in read_list(source)[:_SAMPLED_IMAGES]]
    except UserError:  # reported by the reader
        return []
    return [os.path.normpath(base / line) for base in (source.parent, data.root) for line in lines if "\0" not in line]


def _is_name_list(source: Path) -> bool:
    """Check whether a list is one of VOC: names without suffix, below the parent of a folder JPEGImages."""
    if suffix_of(source.name) in IMAGE_SUFFIXES or not any((up / "JPEGImages").is_dir() for up in source.parents):
        return False
    try:
        lines = read_list(source)
    except UserError:
        return False
    return bool(lines) and suffix_of(lines[0][1]) not in IMAGE_SUFFIXES
