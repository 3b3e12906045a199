"""Reader of COCO panoptic: PNGs whose colours encode segment ids, and a JSON file that describes the segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.json_file import read_json
from tools.converters.label_items import NO_CLASS, LabelSource, SourceImage, images_below, read_class_names
from tools.converters.sources.coco import find_annotations
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import FileObjects, FilePanoptic, LabelledObject, mask_pieces
from utils.datasets.labels.annotation_paths import find_images


@SOURCES.register("panoptic")
def open_panoptic(settings: LabelSettings) -> LabelSource:
    """Open panoptic JSON files; semantic and panoptic maps get all classes, other targets only the things."""
    images: list[SourceImage] = []
    about: dict[Path, tuple[Path, list[dict[str, Any]]]] = {}
    categories: list[dict[str, Any]] = []
    for split, (file, folders) in find_annotations(settings, "panoptic").items():
        content = read_json(file)
        masks = Path(settings.masks) if settings.masks else file.with_suffix("")
        if not masks.is_dir():
            raise UserError(f"{masks}: no folder with the PNGs of {file.name}; set --masks")
        try:
            categories = categories or sorted(content["categories"], key=lambda row: int(row["id"]))
            segments = {Path(row["file_name"]).stem: row for row in content["annotations"]}
            paths = [path for path in sorted(find_images(folders[0], folders[0])) if Path(path).stem in segments]
            for path in paths:
                row = segments[Path(path).stem]
                about[Path(path)] = (masks / row["file_name"], list(row["segments_info"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not a COCO panoptic file ({error!r:.80})") from error
        images += images_below(folders[0], paths, split)
    every = settings.target_format in ("masks", "panoptic")
    chosen = [row for row in categories if every or row.get("isthing", 1)]
    names = {int(row["id"]): str(row["name"]) for row in chosen}
    class_names = read_class_names(settings.names) or tuple(names.values())
    stuff = tuple(str(row["name"]) for row in chosen if not row.get("isthing", 1))
    return LabelSource(class_names, images, lambda image: _read(about[image.path], names, class_names), stuff=stuff)


def _read(about: tuple[Path, list[dict[str, Any]]], names: dict[int, str], class_names: tuple[str, ...]) -> FileObjects:
    file, segments = about
    pixels = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if pixels is None:
        return FileObjects(faults=[f"{file}: cannot be decoded as PNG"])
    ids = pixels.astype(np.int64) @ np.array([65536, 256, 1])  # from BGR: id = R + 256 G + 65536 B
    found = FileObjects(size_hw=(ids.shape[0], ids.shape[1]))
    found.semantic = np.full(ids.shape, NO_CLASS, np.uint8)
    kept: list[tuple[int, str, bool]] = []
    for segment in segments:
        name = names.get(segment.get("category_id", -1))
        if name is None or name not in class_names:
            continue
        mask = ids == segment.get("id")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            found.lost.append(f"{file}: segment {segment.get('id')} has no pixels")
            continue
        found.semantic[mask] = class_names.index(name)
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
        aside = "crowd" if segment.get("iscrowd") else ""
        kept.append((int(segment["id"]), name, bool(aside)))
        found.objects.append(LabelledObject(name, box, mask_pieces(mask), aside, f"segment {segment.get('id')}"))
    known = np.isin(ids, [key for key, _, _ in kept])
    found.panoptic = FilePanoptic(np.where(known, ids, 0).astype(np.int32), kept)
    return found
