"""KITTI: a text file beside every image, `type truncated occluded alpha left top right bottom …` in pixels from 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import Source
from tools.converters.split_folders import image_works, named, opened
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject

_REGION = "DontCare"  # nobody labelled what is in it


@SOURCES.register("kitti")
def open_kitti(settings: LabelSettings) -> Source:
    """Return the images of `image_2` (or `--pictures`) with the label files of `label_2`."""
    root = settings.source
    pictures = Path(settings.pictures) if settings.pictures else root / "image_2"
    if not pictures.is_dir():
        raise UserError(f"{pictures}: no folder of images; give it with --pictures")
    data = opened(settings, "kitti")
    data.splits.clear()
    data.splits[settings.split] = (pictures,)
    works = image_works(data)
    files = {work.image: root / "label_2" / f"{work.name}.txt" for work in works}
    names = data.names or {one.name for file in files.values() for one in read(file).objects if not one.aside}
    return Source(named(data, names), works, lambda work: read(files[work.image]))


def read(file: Path) -> FileObjects:
    """Return the objects in a label file."""
    if not file.exists():
        return FileObjects(present=False)
    try:
        lines = read_text(file, "KITTI label file").splitlines()
    except UserError as error:
        return FileObjects(faults=[str(error)])
    found = FileObjects()
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        try:
            box = np.array(fields[4:8], np.float64)
            if len(box) < 4:
                raise ValueError
        except ValueError:
            found.faults.append(f"{file}:{number}: at least eight fields are expected, the fifth to eighth numbers")
            continue
        if fields[0] != _REGION:
            found.objects.append(LabelledObject(fields[0], box, where=f"line {number}"))
    return found
