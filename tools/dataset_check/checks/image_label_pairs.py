"""Images without labels, labels without images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import Gathered
from utils.datasets.image_files import IMAGE_SUFFIXES
from utils.datasets.labels.semantic_layout import MASK_SUFFIXES

_NO_LABELS = {"classes.txt", "names.txt", "obj.names", "readme.txt", "labels.txt"}
_MANY = 0.5  # of the images of a split
_ONE_MASK_AN_IMAGE = ("folders", "coco", "camvid")  # formats whose folders hold nothing else


@CHECKS.register("pairs")
def check_pairs(gathered: Gathered) -> Iterator[Finding]:
    """Yield images that lack a label file, label files and class maps that lack an image."""
    beside: dict[str, list[tuple[str, str]]] = {}  # by suffix of the label files: images and label files
    for split, images in gathered.splits.items():
        if gathered.formats[split] not in ("yolo", "voc", "labelme", "visdrone"):
            continue
        lacking = [one for one in images if not one.labels.present]
        for one in lacking:
            yield Finding("missing-label", f"{one.picture.path}: no {one.label_file}", split, one.picture.path)
        if len(lacking) > _MANY * len(images):
            text = f"{split}: {len(lacking)} of {len(images)} images; looked for {lacking[0].label_file} and the like"
            yield Finding("many-unlabelled", text, split)
        for one in images:
            suffix = os.path.splitext(one.label_file)[1]  # noqa: PTH122
            beside.setdefault(suffix, []).append((one.picture.path, one.label_file))
    for suffix, files in beside.items():
        for path in _orphans(files, (suffix,)):
            yield Finding("orphan-label", f"{path}: no image of that name")
    config = gathered.data.semantic
    if config is not None and config.format in _ONE_MASK_AN_IMAGE:
        pairs = [(one.picture.path, one.mask) for images in gathered.maps.values() for one in images]
        for path in _orphans(pairs, MASK_SUFFIXES):
            yield Finding("orphan-mask", f"{path}: no image of that name")


def _orphans(pairs: Iterable[tuple[str, str]], suffixes: tuple[str, ...]) -> list[str]:
    """Return the files beside the second ones of pairs whose image is in no folder of the first ones."""
    used: set[str] = set()
    folders: dict[str, set[str]] = {}
    for image, file in pairs:
        used.add(file)
        folders.setdefault(os.path.dirname(file), set()).add(os.path.dirname(image))  # noqa: PTH120
    found = []
    for folder, image_folders in folders.items():
        stems = {Path(name).stem for place in image_folders for name in _names(place, IMAGE_SUFFIXES)}
        for name in _names(folder, suffixes):
            stem = Path(name).stem.removesuffix("_mask").removesuffix("_gt")
            path = os.path.join(folder, name)  # noqa: PTH118
            if path in used or stem in stems or name.lower() in _NO_LABELS:
                continue
            if folder not in image_folders or _is_label(path):  # beside images there may be notes and lists
                found.append(path)
    return sorted(found)


def _names(folder: str, suffixes: Iterable[str]) -> list[str]:
    wanted = frozenset(suffixes)
    try:
        return [name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in wanted]  # noqa: PTH122, PTH208
    except OSError:
        return []


def _is_label(path: str) -> bool:
    """Tell whether a text file among images holds labels: its first line is of numbers."""
    if not path.endswith(".txt"):
        return True
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            fields = file.readline(4096).split()
    except OSError:
        return False
    return len(fields) >= 5 and all(field.replace(".", "", 1).isdigit() for field in fields)
