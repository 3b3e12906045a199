"""Tar shards in WebDataset's layout: an image and the files with its stem, which hold its labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.datasets import READERS
from utils.datasets.file_access import read_binary
from utils.datasets.labels.annotation_paths import label_class_names
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.yolo_lines import MAX_BYTES, MAX_CLASS, ImageLabels, read_labels
from utils.datasets.shards.shard_index import CLASS, TEXT
from utils.datasets.shards.shard_set import ShardSet, shard_paths


@READERS.register("shards")
def read_shards(data: DataConfig, split: str) -> SplitFiles:
    """List the images of the tar files of a split; their labels are in YOLO lines, `.cls` files or names of folders.

    Raises:
        UserError: a tar file is refused, or there are no images.
    """
    where = f"{data.source}: `{split}:`"
    paths = shard_paths(data.split(split), where)
    shards = ShardSet(paths, where)
    names = label_class_names(data)
    numbers = {name: number for number, name in enumerate(names)}
    images = shards.images
    kind, suffix, fingerprint = "yolo", ".txt", ""
    if not shards.has_kind(TEXT):
        if shards.has_kind(CLASS):
            kind, suffix = "cls", ".cls"
        elif Path(images[0]).parent.name in numbers:
            kind = "folders"
        fingerprint = "\n".join([kind, *names])
    files = shards.labels(suffix)
    load = _loader(kind, numbers)

    def load_labels(image: int) -> ImageLabels:
        return load(images[image] if kind == "folders" else files[image])

    first = Path(paths[0])
    cache = first.with_name(f"{first.name}.{short_hash(paths)}{CACHE_SUFFIX}")
    return SplitFiles(
        images,
        files,
        load_labels,
        cache,
        prepare=lambda: shards.notes,
        fingerprint=f"shards {fingerprint}",
        stamped=paths,
        whole_images=kind != "yolo",
    )


def _loader(kind: str, numbers: dict[str, int]) -> Callable[[str], ImageLabels]:
    if kind == "yolo":
        return lambda path: read_labels(Path(path))
    return (lambda path: _read_class(path, numbers)) if kind == "cls" else (lambda path: _class_of(path, numbers))


def _read_class(path: str, numbers: dict[str, int]) -> ImageLabels:
    """Read a file with the number or name of a class."""
    try:
        value = read_binary(path, MAX_BYTES).decode("utf-8-sig").strip()
    except FileNotFoundError:
        return ImageLabels(present=False)
    except UnicodeDecodeError:
        return ImageLabels(faults=[f"{path}:1: not a text file"])
    except OSError as error:
        return ImageLabels(faults=[f"{path}:1: cannot be read ({error.strerror or error})"])
    number = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else numbers.get(value, -1)
    if not 0 <= number <= MAX_CLASS:
        return ImageLabels(faults=[f"{path}:1: {value[:40]!r} is neither the number nor the name of a class"])
    return _whole_image(number)


def _class_of(path: str, numbers: dict[str, int]) -> ImageLabels:
    folder = os.path.basename(os.path.dirname(path))  # noqa: PTH119, PTH120 - called for every image
    if folder not in numbers:
        return ImageLabels(faults=[f"{path}: its folder {folder!r} is not the name of a class"])
    return _whole_image(numbers[folder])


def _whole_image(number: int) -> ImageLabels:
    return ImageLabels(np.array([[number, 0.5, 0.5, 1, 1]], np.float32))
