"""Checks for images without labels and labels without images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import DatasetRecords
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.labels.semantic_layout import MASK_SUFFIXES

_OTHER_TEXT_FILES = {"classes.txt", "names.txt", "obj.names", "readme.txt", "labels.txt"}
_MANY_FRACTION = 0.5  # of the images of a split
_ONE_MASK_PER_IMAGE = ("folders", "coco", "camvid")  # formats whose mask folders contain nothing else


@CHECKS.register("pairs")
def check_pairs(records: DatasetRecords) -> Iterator[Finding]:
    """Find images without a label file, and label files and semantic maps without an image."""
    beside: dict[str, list[tuple[str, str]]] = {}  # by suffix of the label files: images and label files
    for split, images in records.splits.items():
        if records.formats[split] not in ("yolo", "voc", "labelme", "visdrone", "shards"):
            continue
        missing = [one for one in images if not one.labels.present]
        for one in missing:
            yield Finding("missing-label", f"{one.image.path}: no {one.label_file}", split, one.image.path)
        if len(missing) > _MANY_FRACTION * len(images):
            text = f"{split}: {len(missing)} of {len(images)} images; expected files such as {missing[0].label_file}"
            yield Finding("many-unlabelled", text, split)
        for one in images:
            suffix = os.path.splitext(one.label_file)[1]  # noqa: PTH122
            beside.setdefault(suffix, []).append((one.image.path, one.label_file))
    for suffix, files in beside.items():
        for path in _orphans(files, (suffix,)):
            yield Finding("orphan-label", f"{path}: no image with this name")
    config = records.data.semantic
    if config is not None and config.format in _ONE_MASK_PER_IMAGE:
        pairs = [(one.image.path, one.mask) for images in records.maps.values() for one in images]
        for path in _orphans(pairs, MASK_SUFFIXES):
            yield Finding("orphan-mask", f"{path}: no image with this name")


def _orphans(pairs: Iterable[tuple[str, str]], suffixes: tuple[str, ...]) -> list[str]:
    """Find files in the folders of `pairs`' label files for which no image folder has an image."""
    used: set[str] = set()
    folders: dict[str, set[str]] = {}
    for image, file in pairs:
        used.add(file)
        folders.setdefault(os.path.dirname(file), set()).add(os.path.dirname(image))  # noqa: PTH120
    found = []
    for folder, image_folders in folders.items():
        stems = {
            Path(name).stem for image_folder in image_folders for name in _list_names(image_folder, IMAGE_SUFFIXES)
        }
        for name in _list_names(folder, suffixes):
            stem = Path(name).stem.removesuffix("_mask").removesuffix("_gt")
            path = os.path.join(folder, name)  # noqa: PTH118
            if path in used or stem in stems or name.lower() in _OTHER_TEXT_FILES:
                continue
            if folder not in image_folders or _is_label(path):  # folders of images may have other text files
                found.append(path)
    return sorted(found)


def _list_names(folder: str, suffixes: Iterable[str]) -> list[str]:
    accepted = frozenset(suffixes)
    try:
        return [name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in accepted]  # noqa: PTH122, PTH208
    except OSError:
        return []


def _is_label(path: str) -> bool:
    """Check by its first line whether a text file among images has labels."""
    if not path.endswith(".txt"):
        return True
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            fields = file.readline(4096).split()
    except OSError:
        return False
    return len(fields) >= 5 and all(field.replace(".", "", 1).isdigit() for field in fields)
