"""LabelMe format: a JSON file of shapes beside each image; rectangles and circles become polygons."""

from __future__ import annotations

import base64
import binascii
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets import READERS
from utils.datasets.image_files import ImageFault, decode_image
from utils.datasets.labels.annotation_objects import (
    FileObjects,
    LabelledObject,
    circle,
    extent,
    mask_pieces,
    rectangle,
)
from utils.datasets.labels.annotation_paths import label_class_names, split_images
from utils.datasets.labels.annotation_splits import split_of_files
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.yolo_lines import MAX_OBJECTS, too_many_objects

IGNORED = ("__ignore__", "_background_")  # labels that LabelMe's own converters skip
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


@READERS.register("labelme")
def read_labelme(data: DataConfig, split: str) -> SplitFiles:
    """List the images and JSON files of a split."""
    read = partial(read_labelme_file, names=label_class_names(data))
    return split_of_files(data, split, split_images(data, split), ("labelme", ".json"), read)


def read_labelme_file(path: Path, names: tuple[str, ...] = ()) -> FileObjects:
    """Read a JSON file.

    Shapes with the same `group_id` and label are one object.

    Args:
        path: the file; a missing file has no objects.
        names: class names; the labels in `IGNORED` are skipped unless they are among them.

    Returns:
        The objects of the image; invalid content is reported in `faults`.
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
        return FileObjects(faults=[f"{path}: no list `shapes`; is it a LabelMe file?"])
    if len(shapes) > MAX_OBJECTS:
        return FileObjects(faults=[f"{path}: {too_many_objects(len(shapes))}"])
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
    """Convert a shape to an object; None if it is invalid, with the reason added to `found`."""
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
        reason = f"a {kind} has no area" if kind in _WITHOUT_AREA else f"a {kind} with {len(points)} points"
        found.lost.append(f"{path}: {where} ({name}): {reason}, dropped")
        found.lost_xyxy.append((*points.min(0).tolist(), *points.max(0).tolist()))
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
        return [piece + points[0] for piece in mask_pieces(_decode_mask(mask))]
    raise ValueError(f"unknown shape_type {kind!r}")


def _decode_mask(text: Any) -> np.ndarray:
    if not isinstance(text, str):
        raise TypeError("a mask shape without `mask`")
    return cv2.cvtColor(decode_image(base64.b64decode(text, validate=True), Path("mask")), cv2.COLOR_BGR2GRAY)
