"""Reader of YOLO label files, with the paths and rules of utils/datasets/labels/readers/yolo.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import LabelSource, SourceImage
from tools.converters.split_folders import list_images, open_dataset
from utils.core.errors import UserError
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject
from utils.datasets.labels.readers.yolo import label_path
from utils.datasets.labels.yolo_lines import read_labels


@SOURCES.register("yolo")
def open_yolo(settings: LabelSettings) -> LabelSource:
    """Open a YOLO data set."""
    data = open_dataset(settings, "yolo")
    if not data.names:
        raise UserError(f"--source {settings.source}: YOLO labels contain class numbers only; set --names")
    return LabelSource(data.names, list_images(data), lambda image: read(image, data.names))


def read(image: SourceImage, names: tuple[str, ...]) -> FileObjects:
    """Read the objects of an image's label file, in pixels."""
    file = label_path(str(image.path))
    labels = read_labels(Path(file))
    found = FileObjects(present=labels.present, faults=labels.faults)
    if labels.faults or not len(labels.boxes):
        return found
    try:
        size_hw = found.size_hw = probe_image(image.path)
    except ImageFault as fault:
        found.faults.append(str(fault))
        return found
    scale = np.array([size_hw[1], size_hw[0]], np.float64)
    for row, box in enumerate(labels.boxes.astype(np.float64)):
        if box[0] >= len(names):
            found.faults.append(f"{file}: class {box[0]:g} exceeds the {len(names)} class names")
            return found
        centre, half = box[1:3], box[3:5] / 2
        corners = np.concatenate(((centre - half) * scale, (centre + half) * scale))
        pieces = [labels.polygons[row].astype(np.float64) * scale] if labels.polygons else []
        found.objects.append(LabelledObject(names[int(box[0])], corners, pieces, where=f"object {row + 1}"))
    return found
