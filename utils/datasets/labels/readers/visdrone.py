"""VisDrone: a text file of `left,top,width,height,score,category,truncation,occlusion` beside every image.

Rows with the score 0 and of the categories 0 and 11 are regions to ignore; categories count from 1 (behaviour.md 4.1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets import READERS
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.annotation_objects import ClassNumbers, FileObjects, LabelledObject, to_labels
from utils.datasets.labels.annotation_paths import annotation_files, cache_path, class_names, images_of, meaning_of
from utils.datasets.labels.label_index import Listing
from utils.datasets.labels.yolo_lines import ImageLabels

_FIELDS = 8
_IGNORED, _OTHERS = 0, 11


@READERS.register("visdrone")
def read_visdrone(data: DataConfig, split: str) -> Listing:
    """Return the images of a split and their text files, `annotations/a.txt` beside `images/a.jpg`."""
    images = images_of(data, split)
    files = annotation_files(images, ".txt")
    names = class_names(data)
    classes = ClassNumbers(names)

    def labels(i: int) -> ImageLabels:
        try:
            size_hw = probe_image(Path(images[i]))
        except ImageFault:  # is reported as such
            return ImageLabels()
        return to_labels(_read(Path(files[i]), names), size_hw, classes, files[i])

    cache = cache_path(Path(files[0]).parent, data, split)
    return Listing(images, files, labels, cache, meaning=meaning_of(data, "visdrone"))


def _read(path: Path, names: tuple[str, ...]) -> FileObjects:
    if not path.is_file():
        return FileObjects(present=False)
    found = FileObjects()
    try:
        lines = read_text(path, "VisDrone file").splitlines()
    except UserError as error:
        return FileObjects(faults=[str(error)])
    for number, line in enumerate(lines, 1):
        fields = line.strip().rstrip(",").split(",")
        if not line.strip():
            continue
        try:
            x, y, w, h, score, category = map(int, fields[:6])
            if len(fields) != _FIELDS:
                raise ValueError
        except ValueError:
            found.faults.append(f"{path}:{number}: {_FIELDS} whole numbers with commas between are expected")
            continue
        if score == 0 or category in (_IGNORED, _OTHERS):
            continue
        if not 1 <= category <= len(names):
            found.faults.append(f"{path}:{number}: category {category}; {len(names)} are named, from 1")
            continue
        box = np.array([x, y, x + w, y + h], np.float64)
        found.objects.append(LabelledObject(names[category - 1], box, where=f"line {number}"))
    return found
