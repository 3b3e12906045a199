"""Reader of KITTI: a text file per image, `type truncated occluded alpha left top right bottom …`, pixels from 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import LabelSource
from tools.converters.split_folders import list_images, open_dataset, resolve_class_names
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject

_REGION = "DontCare"  # unlabelled region


@SOURCES.register("kitti")
def open_kitti(settings: LabelSettings) -> LabelSource:
    """Open the images of `image_2` (or `--pictures`) with the label files of `label_2`."""
    root = settings.source
    image_folder = Path(settings.pictures) if settings.pictures else root / "image_2"
    if not image_folder.is_dir():
        raise UserError(f"{image_folder}: no folder of images; set --pictures")
    data = open_dataset(settings, "kitti")
    data.splits.clear()
    data.splits[settings.split] = (image_folder,)
    images = list_images(data)
    files = {image.path: root / "label_2" / f"{image.name}.txt" for image in images}
    names = data.names or {one.name for file in files.values() for one in read(file).objects if not one.aside}
    return LabelSource(resolve_class_names(data, names), images, lambda image: read(files[image.path]))


def read(file: Path) -> FileObjects:
    """Read the objects of a label file, in pixels."""
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
            found.faults.append(f"{file}:{number}: expected at least eight fields, the fifth to eighth of them numbers")
            continue
        if fields[0] != _REGION:
            found.objects.append(LabelledObject(fields[0], box, where=f"line {number}"))
    return found
