"""Pascal VOC: an XML file of boxes beside every image (behaviour.md 4.1).

Pixels are numbered from 1 and the last one belongs to the box: x1 = xmin - 1, x2 = xmax. Objects marked as difficult
are not trained on.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import READERS
from utils.datasets.image_files import IMAGE_SUFFIXES, ImageFault, probe_image
from utils.datasets.labels.annotation_objects import ClassNumbers, FileObjects, LabelledObject, to_labels
from utils.datasets.labels.annotation_paths import (
    annotation_files,
    cache_path,
    class_names,
    images_in,
    lines_of,
    meaning_of,
    suffix_of,
)
from utils.datasets.labels.label_index import Listing
from utils.datasets.labels.xml_tree import Element, XmlFault, read_xml
from utils.datasets.labels.yolo_lines import ImageLabels

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@READERS.register("voc")
def read_voc(data: DataConfig, split: str) -> Listing:
    """Return the images of a split, from folders, lists of image files or VOC's own lists of names, and their XML."""
    images = sorted(dict.fromkeys(path for place in data.split(split) for path in images_at(place, data.root)))
    if not images:
        raise UserError(f"{data.source}: no images for `{split}:` in {', '.join(map(str, data.split(split)))}")
    files = annotation_files(images, ".xml")
    classes = ClassNumbers(class_names(data))
    cache = cache_path(Path(files[0]).parent, data, split)
    return Listing(
        images, files, lambda i: _labels(images[i], files[i], classes), cache, meaning=meaning_of(data, "voc")
    )


def _labels(image: str, file: str, classes: ClassNumbers) -> ImageLabels:
    found = read_voc_file(Path(file))
    try:
        size_hw = found.size_hw or probe_image(Path(image))
    except ImageFault:  # is reported as such
        return ImageLabels()
    return to_labels(found, size_hw, classes, file)


def read_voc_file(path: Path) -> FileObjects:
    """Return what an XML file says; what is wrong with it is among its faults."""
    try:
        root = read_xml(path)
    except FileNotFoundError:
        return FileObjects(present=False)
    except XmlFault as fault:
        return FileObjects(faults=[str(fault)])
    if root.tag != "annotation":
        return FileObjects(faults=[f"{path}:{root.line}: <annotation> is expected, this is <{root.tag}>"])
    found = FileObjects(image=root.value("filename"))
    try:
        width, height = (round(float(root.value("size", side) or 0)) for side in ("width", "height"))
        found.size_hw = (height, width) if width > 0 and height > 0 else None
    except (ValueError, OverflowError):
        found.faults.append(f"{path}:{root.line}: the <size> is not of numbers")
    for number, element in enumerate(root.all("object"), 1):
        _add(found, element, path, number)
    return found


def _add(found: FileObjects, element: Element, path: Path, number: int) -> None:
    where, at = f"object {number}", f"{path}:{element.line}"
    name, box = element.value("name"), element.child("bndbox")
    try:
        xmin, ymin, xmax, ymax = (float(box.value(side) if box is not None else "") for side in _SIDES)
    except ValueError:
        found.faults.append(f"{at}: {where}: <bndbox> needs <xmin>, <ymin>, <xmax> and <ymax>, all numbers")
        return
    if not name or not math.isfinite(xmin + ymin + xmax + ymax):
        found.faults.append(f"{at}: {where}: " + ("a box that is not finite" if name else "no <name>"))
        return
    if xmax <= xmin - 1 or ymax <= ymin - 1 or (xmax == xmin and ymax == ymin):  # no side, or a mere point
        found.lost.append(f"{at}: {where} ({name}): a box from {xmin:g}, {ymin:g} to {xmax:g}, {ymax:g}, left out")
        return
    aside = "difficult" if element.value("difficult") == "1" else ""
    corners = np.array([xmin - 1, ymin - 1, xmax, ymax], np.float64)
    found.objects.append(LabelledObject(name, corners, aside=aside, where=where))


def images_at(place: Path, root: Path) -> list[str]:
    """Return the images of a place; a list may also be one of VOC's: names without suffix, perhaps with 1 or -1."""
    if place.is_dir() or suffix_of(place.name) in IMAGE_SUFFIXES:
        return images_in(place, root)
    lines = lines_of(place)
    if lines and suffix_of(lines[0][1]) in IMAGE_SUFFIXES:
        return images_in(place, root)
    names = [line.split()[0] for _, line in lines]
    folder = next((up / "JPEGImages" for up in place.parents if (up / "JPEGImages").is_dir()), None)
    if folder is None:
        raise UserError(f"{place}: a list of names needs a folder JPEGImages in one of the folders above it")
    there = {os.path.splitext(name)[0]: name for name in os.listdir(folder) if suffix_of(name) in IMAGE_SUFFIXES}  # noqa: PTH122, PTH208
    return [str(folder / there.get(name, f"{name}.jpg")) for name in names]
