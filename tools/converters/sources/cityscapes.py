"""Reader of Cityscapes: objects from polygons or instance maps, semantic maps from label maps.

The ten classes with boxes, and their order, are those of multiyolov5, so that its checkpoints can be continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.json_file import read_json
from tools.converters.label_items import NO_CLASS, LabelSource, SourceImage, images_below, read_class_names
from utils.core.errors import UserError
from utils.core.input_files import MAX_IMAGE_BYTES, read_input
from utils.datasets.labels.annotation_objects import FileObjects, FilePanoptic, LabelledObject, extent, mask_pieces
from utils.datasets.labels.annotation_paths import find_images

BOX_NAMES = (
    "car", "traffic sign", "rider", "person", "bicycle", "traffic light", "bus", "motorcycle", "truck", "train",
)  # fmt: skip
SEMANTIC_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
SEMANTIC_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # labelIds of SEMANTIC_NAMES
_FIRST_THING = 24  # smallest label id of a class with instances
_FIRST_INSTANCE = 24_000  # smaller values are class ids of regions and of groups


@SOURCES.register("cityscapes")
def open_cityscapes(settings: LabelSettings) -> LabelSource:
    """Open the images of `leftImg8bit`, with labels from `*_polygons.json`, otherwise from `*_instanceIds.png`."""
    root = settings.source / "leftImg8bit"
    if not root.is_dir():
        raise UserError(f"--source {settings.source}: no folder leftImg8bit; expected the root folder of Cityscapes")
    images: list[SourceImage] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images += images_below(folder, sorted(find_images(folder, folder)), folder.name)
    if settings.target_format == "masks":
        return LabelSource(SEMANTIC_NAMES, images, lambda image: _read_semantic(settings.source, image))
    if settings.target_format == "panoptic":
        stuff = tuple(name for name, key in zip(SEMANTIC_NAMES, SEMANTIC_IDS, strict=True) if key < _FIRST_THING)
        return LabelSource(SEMANTIC_NAMES, images, lambda image: _read_panoptic(settings.source, image), stuff=stuff)
    without = sum(not _label(settings.source, image, "polygons.json").is_file() for image in images)
    notes = []
    if without:
        notes.append("instance maps used instead of polygons; they lack traffic signs and traffic lights")
    names = read_class_names(settings.names) or BOX_NAMES
    return LabelSource(names, images, lambda image: _objects(settings, image), notes)


def _label(root: Path, image: SourceImage, ending: str) -> Path:
    stem = image.name.removesuffix("_leftImg8bit")
    return root / "gtFine" / image.split / f"{stem}_gtFine_{ending}"


def _objects(settings: LabelSettings, image: SourceImage) -> FileObjects:
    file = _label(settings.source, image, "polygons.json")
    try:
        found = _from_polygons(file) if file.is_file() else _from_instances(settings.source, image)
    except UserError as error:
        return FileObjects(faults=[str(error)])
    if settings.shift_centre:
        for one in found.objects:
            one.box_xyxy = one.box_xyxy - 1
    return found


def _from_polygons(file: Path) -> FileObjects:
    content = read_json(file)
    try:
        found = FileObjects(size_hw=(int(content["imgHeight"]), int(content["imgWidth"])))
        for number, entry in enumerate(content["objects"], 1):
            points = np.array(entry["polygon"], np.float64).reshape(-1, 2)
            if entry.get("deleted") or len(points) < 3:
                continue
            found.objects.append(
                LabelledObject(str(entry["label"]), extent([points]), [points], where=f"object {number}")
            )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a Cityscapes polygon file ({error!r:.80})") from error
    return found


def _from_instances(root: Path, image: SourceImage) -> FileObjects:
    file = _label(root, image, "instanceIds.png")
    ids = _read_png(file)
    found = FileObjects(size_hw=(ids.shape[0], ids.shape[1]))
    class_names = dict(zip(SEMANTIC_IDS, SEMANTIC_NAMES, strict=True))
    for value, box, mask in _regions(ids):
        if value < _FIRST_INSTANCE or value // 1000 not in class_names:
            continue
        pieces = [piece + box[:2] for piece in mask_pieces(mask)]
        found.objects.append(LabelledObject(class_names[value // 1000], box, pieces, where=f"instance {value}"))
    return found


def _regions(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield each value of a map with its xyxy box and its mask inside the box."""
    for value in np.unique(ids).tolist():
        mask = ids == value
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        yield value, np.array([x1, y1, x2, y2], np.float64), mask[y1:y2, x1:x2]


def _read_semantic(root: Path, image: SourceImage) -> FileObjects:
    try:
        ids = _read_png(_label(root, image, "labelIds.png"))
    except UserError as error:
        return FileObjects(faults=[str(error)])
    table = np.full(2**16, NO_CLASS, np.uint8)
    table[list(SEMANTIC_IDS)] = np.arange(len(SEMANTIC_IDS))
    return FileObjects(size_hw=(ids.shape[0], ids.shape[1]), semantic=table[ids])


def _read_panoptic(root: Path, image: SourceImage) -> FileObjects:
    """Read an instance map; things that are not separated into instances are crowds."""
    try:
        ids = _read_png(_label(root, image, "instanceIds.png")).astype(np.int32)
    except UserError as error:
        return FileObjects(faults=[str(error)])
    class_names = dict(zip(SEMANTIC_IDS, SEMANTIC_NAMES, strict=True))
    segments = []
    for value in np.unique(ids).tolist():
        key = value // 1000 if value >= _FIRST_INSTANCE else value
        if key in class_names:
            segments.append((value, class_names[key], _FIRST_THING <= value < _FIRST_INSTANCE))
    known = np.isin(ids, [value for value, _, _ in segments])
    found = FileObjects(size_hw=(ids.shape[0], ids.shape[1]))
    found.panoptic = FilePanoptic(np.where(known, ids, 0), segments)
    return found


def _read_png(file: Path) -> np.ndarray:
    try:
        data = read_input(file, MAX_IMAGE_BYTES)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if pixels is None or pixels.ndim != 2:
        raise UserError(f"{file}: not a single-channel PNG")
    return np.asarray(pixels)
