"""YOLO format: images in folders or list files, each with a text file of boxes or polygons."""

from __future__ import annotations

import os
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.datasets import READERS
from utils.datasets.labels.annotation_paths import split_images
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.yolo_lines import read_labels


@READERS.register("yolo")
def read_yolo(data: DataConfig, split: str) -> SplitFiles:
    """List the images and label files of a split."""
    sources, images = data.split(split), split_images(data, split)
    files = [label_path(path) for path in images]
    folder = Path(files[0]).parent
    name = folder.name
    if len(sources) > 1 or not sources[0].is_dir():  # other splits may have their labels in the same folder
        name += "." + short_hash([*map(str, sources)])
    cache = folder.with_name(name + CACHE_SUFFIX)
    return SplitFiles(images, files, lambda image: read_labels(Path(files[image])), cache)


def label_path(image: str) -> str:
    """Derive the label file of an image: the last /images/ becomes /labels/, the suffix becomes .txt."""
    stem = os.path.splitext(image)[0]  # noqa: PTH122 - a Path per image costs a second on a large set
    before, found, after = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}.txt" if found else f"{stem}.txt"
