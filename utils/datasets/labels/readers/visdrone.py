"""VisDrone format: a text file of `left,top,width,height,score,category,truncation,occlusion` beside each image.

Rows with score 0 and of categories 0 and 11 are ignored regions; categories start at 1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets import READERS
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject
from utils.datasets.labels.annotation_paths import label_class_names, split_images
from utils.datasets.labels.annotation_splits import split_of_files
from utils.datasets.labels.label_index import SplitFiles

_FIELDS = 8
_IGNORED, _OTHERS = 0, 11


@READERS.register("visdrone")
def read_visdrone(data: DataConfig, split: str) -> SplitFiles:
    """List the images and text files of a split, `annotations/a.txt` for `images/a.jpg`."""
    read = partial(_read, names=label_class_names(data))
    return split_of_files(data, split, split_images(data, split), ("visdrone", ".txt"), read)


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
            found.faults.append(f"{path}:{number}: expected {_FIELDS} integers separated by commas")
            continue
        if score == 0 or category in (_IGNORED, _OTHERS):
            continue
        if not 1 <= category <= len(names):
            found.faults.append(f"{path}:{number}: category {category}, expected 1 to {len(names)}")
            continue
        box = np.array([x, y, x + w, y + h], np.float64)
        found.objects.append(LabelledObject(names[category - 1], box, where=f"line {number}"))
    return found
