"""Pascal VOC format: an XML file of boxes beside each image.

Pixel indices start at 1 and the last pixel belongs to the box: x1 = xmin - 1, x2 = xmax. Objects marked `difficult` are
not used for training.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import READERS
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject
from utils.datasets.labels.annotation_paths import find_images, read_list, suffix_of
from utils.datasets.labels.annotation_splits import split_of_files
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.xml_tree import Element, XmlFault, read_xml
from utils.datasets.labels.yolo_lines import MAX_OBJECTS, too_many_objects

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@READERS.register("voc")
def read_voc(data: DataConfig, split: str) -> SplitFiles:
    """List the images and XML files of a split, from folders, image lists or VOC's own lists of names.

    Raises:
        UserError: there are no images, or a list is unreadable.
    """
    images = sorted(dict.fromkeys(path for source in data.split(split) for path in find_voc_images(source, data.root)))
    if not images:
        raise UserError(f"{data.source}: no images for `{split}:` in {', '.join(map(str, data.split(split)))}")
    return split_of_files(data, split, images, ("voc", ".xml"), read_voc_file)


def read_voc_file(path: Path) -> FileObjects:
    """Read an XML file; a missing file has no objects, and invalid content is reported in `faults`."""
    try:
        root = read_xml(path)
    except FileNotFoundError:
        return FileObjects(present=False)
    except XmlFault as fault:
        return FileObjects(faults=[str(fault)])
    if root.tag != "annotation":
        return FileObjects(faults=[f"{path}:{root.line}: expected <annotation>, got <{root.tag}>"])
    found = FileObjects(image=root.value("filename"))
    try:
        width, height = (round(float(root.value("size", side) or 0)) for side in ("width", "height"))
        found.size_hw = (height, width) if width > 0 and height > 0 else None
    except (ValueError, OverflowError):
        found.faults.append(f"{path}:{root.line}: <size> must have numbers")
    elements = list(root.all("object"))
    if len(elements) > MAX_OBJECTS:
        return FileObjects(faults=[f"{path}:{elements[MAX_OBJECTS].line}: {too_many_objects(len(elements))}"])
    for number, element in enumerate(elements, 1):
        _add(found, element, path, number)
    return found


def _add(found: FileObjects, element: Element, path: Path, number: int) -> None:
    where, at = f"object {number}", f"{path}:{element.line}"
    name, box = element.value("name"), element.child("bndbox")
    try:
        xmin, ymin, xmax, ymax = (float(box.value(side) if box is not None else "") for side in _SIDES)
    except ValueError:
        found.faults.append(f"{at}: {where}: <bndbox> needs numbers in <xmin>, <ymin>, <xmax> and <ymax>")
        return
    if not name or not math.isfinite(xmin + ymin + xmax + ymax):
        found.faults.append(f"{at}: {where}: " + ("the box is not finite" if name else "no <name>"))
        return
    if xmax <= xmin - 1 or ymax <= ymin - 1 or (xmax == xmin and ymax == ymin):  # an empty side, or a single point
        found.lost.append(f"{at}: {where} ({name}): a box from {xmin:g}, {ymin:g} to {xmax:g}, {ymax:g}, dropped")
        found.lost_xyxy.append((xmin, ymin, xmax, ymax))
        return
    aside = "difficult" if element.value("difficult") == "1" else ""
    corners = np.array([xmin - 1, ymin - 1, xmax, ymax], np.float64)
    found.objects.append(LabelledObject(name, corners, aside=aside, where=where))


def find_voc_images(source: Path, root: Path) -> list[str]:
    """Find the images of one path in a data YAML, which may be a list of VOC.

    Args:
        source: a folder, image or image list, or a list of names without suffix, each followed by 1 or -1 or nothing.
        root: root of the data set.

    Raises:
        UserError: there is no folder JPEGImages above a list of names, or the list is unreadable.
    """
    if source.is_dir() or suffix_of(source.name) in IMAGE_SUFFIXES:
        return find_images(source, root)
    lines = read_list(source)
    if lines and suffix_of(lines[0][1]) in IMAGE_SUFFIXES:
        return find_images(source, root)
    names = [line.split()[0] for _, line in lines]
    folder = next((up / "JPEGImages" for up in source.parents if (up / "JPEGImages").is_dir()), None)
    if folder is None:
        raise UserError(f"{source}: a list of names needs a folder JPEGImages beside or above it")
    files = {os.path.splitext(name)[0]: name for name in os.listdir(folder) if suffix_of(name) in IMAGE_SUFFIXES}  # noqa: PTH122, PTH208
    return [str(folder / files.get(name, f"{name}.jpg")) for name in names]
