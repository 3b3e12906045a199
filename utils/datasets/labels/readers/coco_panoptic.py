"""COCO's panoptic format: boxes and outlines of the things, from PNG files of segment ids and one JSON per split.

Crowd regions are not used for training; evaluation of panoptic maps treats them as the definition demands.
"""

from __future__ import annotations

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import READERS
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.annotation_objects import join_pieces, mask_pieces
from utils.datasets.labels.annotation_paths import fingerprint_of, split_images
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.panoptic_files import NumberedMap
from utils.datasets.labels.panoptic_table import PanopticSplit, open_panoptic_split
from utils.datasets.labels.readers.coco import match_images
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.yolo_lines import ImageLabels
from utils.ops.panoptic import bounding_window


@READERS.register("coco-panoptic")
def read_coco_panoptic(data: DataConfig, split: str) -> SplitFiles:
    """List the images of a split that its panoptic JSON describes, and their maps.

    Raises:
        UserError: the JSON is missing or unusable, or lists none of the images.
    """
    found = open_panoptic_split(data, split)
    images, rows = match_panoptic_images(data, split, found)
    maps = [found.map_path(row) for row in rows]
    things = len(data.names)

    def load_labels(image: int) -> ImageLabels:
        return thing_labels(found, rows[image], things)

    def prepare() -> list[str]:
        return list(found.notes)

    name = f"{found.source.stem}.{short_hash([*map(str, data.split(split))])}{CACHE_SUFFIX}"
    return SplitFiles(
        images=images,
        label_files=maps,
        load_labels=load_labels,
        cache=found.source.with_name(name),
        prepare=prepare,
        fingerprint=fingerprint_of(data, "coco-panoptic"),
        stamped=[*images, *maps, str(found.source)],
    )


def match_panoptic_images(data: DataConfig, split: str, found: PanopticSplit) -> tuple[list[str], list[int]]:
    """List the images of a split that its JSON describes, and their rows in the table.

    Raises:
        UserError: there are none.
    """
    images = split_images(data, split)
    rows = match_images([str(name) for name in found.table.names], images)
    listed = [image for image in images if image in rows]
    if not listed:
        raise UserError(
            f"{found.source}: none of its {len(found.table)} images, such as {found.table.names[0]}, is among the "
            f"{len(images)} that {data.source} names, such as {images[0]}"
        )
    return listed, [rows[image] for image in listed]


def thing_labels(found: PanopticSplit, row: int, things: int) -> ImageLabels:
    """Trace the things of an image.

    Args:
        found: annotations of the split.
        row: image in its table.
        things: number of classes that are things, the first ones.

    Returns:
        A box and an outline per thing that is no crowd.
    """
    path, table = found.map_path(row), found.table
    try:
        numbered = found.read(row)
    except ImageFault as error:
        return ImageLabels(faults=[str(error)])
    if fault := unlisted_fault(path, numbered):
        return ImageLabels(faults=[fault])
    height, width = numbered.numbers.shape
    stated = table.size_hw(row)
    if stated not in (None, (height, width)):
        return ImageLabels(faults=[f"{path}: {width} x {height} pixels, in the JSON {stated[1]} x {stated[0]}"])
    labels = ImageLabels(size_hw=(height, width))
    boxes = []
    rows = table.rows(row)
    segments = zip(table.ids[rows].tolist(), table.classes[rows].tolist(), table.crowd[rows].tolist(), strict=True)
    for number, (key, label, crowd) in enumerate(segments, 1):
        if not numbered.areas[number]:
            labels.lost.append(f"{path}: segment {key} has no pixels, dropped")
            continue
        if crowd or label >= things:
            continue
        window = bounding_window(numbered.numbers == number)
        (top, bottom), (left, right) = ((part.start, part.stop) for part in window)
        pieces = mask_pieces(numbered.numbers[window] == number)
        outline = (join_pieces(pieces) + np.array([left, top])) / (width, height)
        labels.polygons.append(np.clip(outline, 0, 1).astype(np.float32))
        centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
        boxes.append((label, *centre, (right - left) / width, (bottom - top) / height))
    if boxes:
        labels.boxes = np.array(boxes, np.float32)
    return labels


def unlisted_fault(path: str, numbered: NumberedMap) -> str:
    """Describe the pixels of a map whose segment the JSON does not list, "" if there are none."""
    if not numbered.unlisted_px:
        return ""
    return f"{path}: {numbered.unlisted_px} pixels of segment {numbered.unlisted} and others not in `segments_info`"
