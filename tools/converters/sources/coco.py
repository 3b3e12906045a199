"""Reader of COCO JSON files with boxes, polygons and run-length masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import LabelSource, SourceImage, images_below, read_class_names
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import FileObjects
from utils.datasets.labels.annotation_paths import find_images, require_annotations
from utils.datasets.labels.coco_json import CocoTable, read_coco_json
from utils.datasets.labels.readers.coco import match_images


@SOURCES.register("coco")
def open_coco(settings: LabelSettings) -> LabelSource:
    """Open one JSON file, all `instances_*.json` of a folder, or a data YAML.

    Images are searched in `--pictures`, otherwise in folders named like the split.
    """
    images: list[SourceImage] = []
    notes: list[str] = []
    names: tuple[str, ...] = read_class_names(settings.names)
    tables: dict[str, tuple[CocoTable, dict[str, int]]] = {}
    for split, (file, folders) in find_annotations(settings).items():
        table = read_coco_json(file)
        paths = sorted(dict.fromkeys(path for folder in folders for path in find_images(folder, folder)))
        rows = match_images(table.names, paths)
        found = [path for path in paths if path in rows]
        if not found:
            raise UserError(
                f"{file}: none of its images, such as {table.names[0]}, is below {folders[0]}; set --pictures"
            )
        images += images_below(next(f for f in folders if Path(found[0]).is_relative_to(f)), found, split)
        notes += [*table.notes, *([f"{file}: {n} images not found"] if (n := len(table.names) - len(found)) else [])]
        tables[split] = (table, rows)
        ordered = sorted(table.categories, key=lambda category: int(category["id"]))
        names = names or tuple(str(category["name"]) for category in ordered)

    def read(image: SourceImage) -> FileObjects:
        table, rows = tables[image.split]
        return table.objects(rows[str(image.path)])

    return LabelSource(names, images, read, notes)


def find_annotations(settings: LabelSettings, kind: str = "instances") -> Mapping[str, tuple[Path, list[Path]]]:
    """Find the annotation file of each split and the folders where its images may be, the likeliest first."""
    source = settings.source
    if source.suffix.lower() in (".yaml", ".yml"):
        data = load_data(str(source))
        return {
            split: (require_annotations(data, split, "coco", "instances"), list(data.split(split)))
            for split in data.annotations
        }
    if source.is_file():
        files, root = [source], source.parent.parent if source.parent.name == "annotations" else source.parent
    else:
        files, root = sorted([*source.glob(f"annotations/{kind}_*.json"), *source.glob(f"{kind}_*.json")]), source
    if not files:
        raise UserError(f"--source {source}: no {kind}_*.json in the folder or in `annotations`; give the JSON file")
    parts = {}
    for file in files:
        split = re.sub(f"^{kind}_", "", file.stem) or settings.split
        short = re.sub(r"\d+$", "", split)
        candidates = (f"images/{split}", split, f"images/{short}", short, "images", ".")
        folders = [Path(settings.pictures)] if settings.pictures else [root / name for name in candidates]
        existing = [folder for folder in folders if folder.is_dir()]
        if not existing:
            raise UserError(f"{file}: no folder of images found; set --pictures")
        parts[split] = (file, existing[:1])
    return parts
