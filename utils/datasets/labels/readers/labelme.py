"""LabelMe: a JSON file of shapes beside every image. Rectangles and circles are outlines like polygons."""

from __future__ import annotations

import base64
import binascii
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets import READERS
from utils.datasets.image_files import ImageFault, decode_image, probe_image
from utils.datasets.labels.annotation_objects import (
    ClassNumbers,
    FileObjects,
    LabelledObject,
    circle,
    extent,
    mask_pieces,
    rectangle,
    to_labels,
)
from utils.datasets.labels.annotation_paths import annotation_files, cache_path, class_names, images_of, meaning_of
from utils.datasets.labels.label_index import Listing
from utils.datasets.labels.yolo_lines import ImageLabels

IGNORED = ("__ignore__", "_background_")  # labels of no object (behaviour.md 12.10)
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


@READERS.register("labelme")
def read_labelme(data: DataConfig, split: str) -> Listing:
    """Return the images of a split and their JSON files."""
    images = images_of(data, split)
    files = annotation_files(images, ".json")
    names = class_names(data)
    classes = ClassNumbers(names)

    def labels(i: int) -> ImageLabels:
        found = read_labelme_file(Path(files[i]), names)
        try:
            size_hw = found.size_hw or probe_image(Path(images[i]))
        except ImageFault:  # is reported as such
            return ImageLabels()
        return to_labels(found, size_hw, classes, files[i])

    cache = cache_path(Path(files[0]).parent, data, split)
    return Listing(images, files, labels, cache, meaning=meaning_of(data, "labelme"))


def read_labelme_file(path: Path, names: tuple[str, ...] = ()) -> FileObjects:
    """Return what a JSON file says; what is wrong with it is among its faults.

    Shapes with the same `group_id` and label are one object. Those labelled `__ignore__` or `_background_` are none,
    unless `names` has such a class.
    """
    if not path.exists():
        return FileObjects(present=False)
    if not path.is_file():
        return FileObjects(faults=[f"{path}: not a file"])
    try:
        content = json.loads(read_text(path, "LabelMe file"))
    except UserError as error:
        return FileObjects(faults=[str(error)])
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        return FileObjects(faults=[f"{path}:{line}: not valid JSON ({getattr(error, 'msg', str(error)[:80])})"])
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        return FileObjects(faults=[f"{path}: no list of `shapes`; is it a LabelMe file?"])
    found = FileObjects(image=str(content.get("imagePath") or ""))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        found.size_hw = (height, width)
    groups: dict[tuple[Any, str], LabelledObject] = {}
    for number, shape in enumerate(shapes, 1):
        one = _object(found, shape, path, number)
        if one is None or (one.name in IGNORED and one.name not in names):
            continue
        group = shape.get("group_id")
        if isinstance(group, (int, str)) and (group, one.name) in groups:
            whole = groups[(group, one.name)]
            whole.pieces += one.pieces
            whole.box_xyxy = extent(whole.pieces)
            continue
        if isinstance(group, (int, str)):
            groups[(group, one.name)] = one
        found.objects.append(one)
    return found


def _object(found: FileObjects, shape: Any, path: Path, number: int) -> LabelledObject | None:
    """Return the object of a shape, or None and why in `found`."""
    where = f"shape {number}"
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), (str, int)):
        found.faults.append(f"{path}: {where}: no `label`")
        return None
    name, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
    try:
        points = np.array(shape.get("points"), np.float64).reshape(-1, 2)
        if not np.isfinite(points).all() or not len(points):
            raise ValueError("coordinates must be finite numbers")
        pieces = _pieces(kind, points, shape.get("mask"))
    except (ValueError, TypeError, binascii.Error, ImageFault) as error:
        found.faults.append(f"{path}: {where} ({name}): {str(error)[:100] or 'no points'}")
        return None
    if not pieces or kind in _WITHOUT_AREA:
        reason = f"a {kind} has no area" if kind in _WITHOUT_AREA else f"a {kind} of {len(points)} points"
        found.lost.append(f"{path}: {where} ({name}): {reason}, left out")
        return None
    return LabelledObject(name, extent(pieces), pieces, where=where, outlined=kind != "rectangle")


def _pieces(kind: str, points: np.ndarray, mask: Any) -> list[np.ndarray]:
    if kind in _WITHOUT_AREA:
        return []
    if kind == "polygon":
        return [points] if len(points) >= 3 else []
    if len(points) < 2:
        return []
    if kind == "rectangle":
        return [rectangle(np.concatenate((points[:2].min(0), points[:2].max(0))))]
    if kind == "circle":
        return [circle(points[0], math.dist(points[0], points[1]))]
    if kind == "mask":
        return [piece + points[0] for piece in mask_pieces(_decoded(mask))]
    raise ValueError(f"unknown shape_type {kind!r}")


def _decoded(text: Any) -> np.ndarray:
    if not isinstance(text, str):
        raise TypeError("a mask shape without its `mask`")
    return cv2.cvtColor(decode_image(base64.b64decode(text, validate=True), Path("mask")), cv2.COLOR_BGR2GRAY)
