"""A folder of images per class: each image shows one thing, all over (behaviour.md 3.15)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.datasets import READERS
from utils.datasets.image_files import IMAGE_SUFFIXES
from utils.datasets.labels.annotation_paths import images_in
from utils.datasets.labels.label_index import CACHE_SUFFIX, Listing
from utils.datasets.labels.yolo_lines import ImageLabels


@READERS.register("folders")
def read_folders(data: DataConfig, split: str) -> Listing:
    """Return the images of a split; an image's only label is its folder's class, with a box around everything."""
    names = data.label_names or data.names
    found: list[tuple[int, int, str]] = []  # place in its class, class, path
    places = data.split(split)
    for place in places:
        folders = class_folders(place)
        if unknown := sorted(folders.keys() - set(names)):
            raise UserError(f"{place / unknown[0]}: no class of {data.source} is called so (it has {_few(names)})")
        if missing := [name for name in names if name not in folders]:
            LOGGER.warning(f"{place}: no folder for {_few(missing)}")
        for number, name in enumerate(names):
            files = sorted(images_in(folders[name], data.root)) if name in folders else []
            if name in folders and not files:
                LOGGER.warning(f"{folders[name]}: no images in this folder")
            found += [(position, number, path) for position, path in enumerate(files)]
    if not found:
        wanted = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(
            f"{data.source}: no images ({wanted}) in folders of classes below {', '.join(map(str, places))}"
        )
    found.sort()  # one of each class after the other, so that any few of them show several
    images, numbers = [path for _, _, path in found], np.array([number for _, number, _ in found], np.float32)
    key = hashlib.sha256("\n".join([*map(str, places), *names]).encode("utf-8", "surrogateescape")).hexdigest()[:8]

    def label_of(image: int) -> ImageLabels:
        return ImageLabels(np.array([[numbers[image], 0.5, 0.5, 1, 1]], np.float32))

    cache = places[0].with_name(f"{places[0].name}.{key}{CACHE_SUFFIX}")
    return Listing(images, [""] * len(images), label_of, cache)


def class_folders(place: Path) -> dict[str, Path]:
    """Return the folders below `place` by name; hidden ones are none."""
    if not place.is_dir():
        raise UserError(f"{place}: a folder with a folder of images per class is expected")
    try:
        with os.scandir(place) as entries:
            return {entry.name: Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] != "."}
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror or error})") from error


def _few(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
