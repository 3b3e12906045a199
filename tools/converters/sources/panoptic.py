"""COCO panoptic: PNGs whose colours number segments, and a JSON that says what each is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.json_file import read_json
from tools.converters.label_items import NO_CLASS, Source, Work, given_names, works_below
from tools.converters.sources.coco import parts_of
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject, mask_pieces
from utils.datasets.labels.annotation_paths import find_images


@SOURCES.register("panoptic")
def open_panoptic(settings: LabelSettings) -> Source:
    """Return the images of panoptic JSONs. To masks all 133 classes go, as objects only things."""
    works: list[Work] = []
    about: dict[Path, tuple[Path, list[dict[str, Any]]]] = {}
    categories: list[dict[str, Any]] = []
    for split, (file, folders) in parts_of(settings, "panoptic").items():
        content = read_json(file)
        masks = Path(settings.masks) if settings.masks else file.with_suffix("")
        if not masks.is_dir():
            raise UserError(f"{masks}: no folder with the PNGs of {file.name}; give it with --masks")
        try:
            categories = categories or sorted(content["categories"], key=lambda row: int(row["id"]))
            segments = {Path(row["file_name"]).stem: row for row in content["annotations"]}
            paths = [path for path in sorted(find_images(folders[0], folders[0])) if Path(path).stem in segments]
            for path in paths:
                row = segments[Path(path).stem]
                about[Path(path)] = (masks / row["file_name"], list(row["segments_info"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not a COCO panoptic file ({error!r:.80})") from error
        works += works_below(folders[0], paths, split)
    things = settings.target_format == "masks"
    chosen = [row for row in categories if things or row.get("isthing", 1)]
    names = {int(row["id"]): str(row["name"]) for row in chosen}
    wanted = given_names(settings.names) or tuple(names.values())
    return Source(wanted, works, lambda work: _read(about[work.image], names, wanted))


def _read(about: tuple[Path, list[dict[str, Any]]], names: dict[int, str], wanted: tuple[str, ...]) -> FileObjects:
    file, segments = about
    picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if picture is None:
        return FileObjects(faults=[f"{file}: not a PNG that can be read"])
    ids = picture.astype(np.int64) @ np.array([65536, 256, 1])  # blue, green, red
    found = FileObjects(size_hw=(ids.shape[0], ids.shape[1]))
    found.semantic = np.full(ids.shape, NO_CLASS, np.uint8)
    for segment in segments:
        name = names.get(segment.get("category_id", -1))
        if name is None or name not in wanted:
            continue
        mask = ids == segment.get("id")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            found.lost.append(f"{file}: segment {segment.get('id')} has no pixels")
            continue
        found.semantic[mask] = wanted.index(name)
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
        aside = "crowd" if segment.get("iscrowd") else ""
        found.objects.append(LabelledObject(name, box, mask_pieces(mask), aside, f"segment {segment.get('id')}"))
    return found
