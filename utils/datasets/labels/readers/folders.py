"""Classification folders: one folder of images per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.datasets import READERS
from utils.datasets.labels.annotation_paths import find_images, label_class_names, no_images_error
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.yolo_lines import ImageLabels

_MAX_LISTED = 8  # class names in a message


@READERS.register("folders")
def read_folders(data: DataConfig, split: str) -> SplitFiles:
    """List the images of a split; the only label of an image is its folder's class, with a box over the whole image.

    Raises:
        UserError: a folder is not among the classes, or there are no images.
    """
    names = label_class_names(data)
    found: list[tuple[int, int, str]] = []  # position in its class, class, path
    sources = data.split(split)
    for source in sources:
        folders = class_folders(source)
        if unknown := sorted(folders.keys() - set(names)):
            raise UserError(f"{source / unknown[0]}: not a class of {data.source} (classes: {_shortened(names)})")
        if missing := [name for name in names if name not in folders]:
            LOGGER.warning(f"{source}: no folder for {_shortened(missing)}")
        for number, name in enumerate(names):
            files = sorted(find_images(folders[name], data.root)) if name in folders else []
            if name in folders and not files:
                LOGGER.warning(f"{folders[name]}: no images in this folder")
            found += [(position, number, path) for position, path in enumerate(files)]
    if not found:
        raise no_images_error(data, sources, "in class folders below")
    found.sort()  # interleave the classes, so that any few successive images show several
    images, numbers = [path for _, _, path in found], np.array([number for _, number, _ in found], np.float32)

    def load_labels(image: int) -> ImageLabels:
        return ImageLabels(np.array([[numbers[image], 0.5, 0.5, 1, 1]], np.float32))

    key = short_hash([*map(str, sources), *names])
    cache = sources[0].with_name(f"{sources[0].name}.{key}{CACHE_SUFFIX}")
    return SplitFiles(images, [""] * len(images), load_labels, cache, whole_images=True)


def class_folders(folder: Path) -> dict[str, Path]:
    """List the folders below `folder` by name, without hidden ones.

    Raises:
        UserError: `folder` is not a readable folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder with one folder of images per class")
    try:
        with os.scandir(folder) as entries:
            return {entry.name: Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] != "."}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _shortened(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:_MAX_LISTED])
    return f"{shown} and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else shown
