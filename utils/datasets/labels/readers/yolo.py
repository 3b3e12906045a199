"""Images in folders or list files, each with a text file of boxes or polygons (behaviour.md 4.2)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.datasets import READERS
from utils.datasets.labels.annotation_paths import images_of
from utils.datasets.labels.label_index import CACHE_SUFFIX, Listing
from utils.datasets.labels.yolo_lines import read_labels


@READERS.register("yolo")
def read_yolo(data: DataConfig, split: str) -> Listing:
    """Return the images of a split and where their labels lie."""
    places, images = data.split(split), images_of(data, split)
    labels = [label_path(path) for path in images]
    folder = Path(labels[0]).parent
    name = folder.name
    if len(places) > 1 or not places[0].is_dir():  # other splits may have their labels in the same folder
        name += "." + hashlib.sha256("\n".join(map(str, places)).encode()).hexdigest()[:8]
    return Listing(images, labels, lambda i: read_labels(Path(labels[i])), folder.with_name(name + CACHE_SUFFIX))


def label_path(image: str) -> str:
    """Return where the labels of an image lie: the last /images/ becomes /labels/, the suffix .txt."""
    stem = os.path.splitext(image)[0]  # noqa: PTH122 - a Path per image costs a second on a large set
    before, found, after = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}.txt" if found else f"{stem}.txt"
