"""COCO JSON files with boxes, outlines and run lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import Source, Work, given_names, works_below
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import FileObjects
from utils.datasets.labels.annotation_paths import find_images
from utils.datasets.labels.coco_json import CocoTable, read_coco_json
from utils.datasets.labels.readers.coco import require_annotations, match_images


@SOURCES.register("coco")
def open_coco(settings: LabelSettings) -> Source:
    """Return the images of one JSON, of all `instances_*.json` below a folder, or of a data YAML.

    Images are looked for in `--pictures`, else in folders called like the split.
    """
    works: list[Work] = []
    notes: list[str] = []
    names: tuple[str, ...] = given_names(settings.names)
    tables: dict[str, tuple[CocoTable, dict[str, int]]] = {}
    for split, (file, folders) in parts_of(settings).items():
        table = read_coco_json(file)
        paths = sorted(dict.fromkeys(path for folder in folders for path in find_images(folder, folder)))
        rows = match_images(table, paths)
        found = [path for path in paths if path in rows]
        if not found:
            raise UserError(f"{file}: none of its images, such as {table.names[0]}, is below {folders[0]}; --pictures?")
        works += works_below(next(f for f in folders if Path(found[0]).is_relative_to(f)), found, split)
        notes += [*table.notes, *([f"{file}: {n} images not found"] if (n := len(table.names) - len(found)) else [])]
        tables[split] = (table, rows)
        ordered = sorted(table.categories, key=lambda category: int(category["id"]))
        names = names or tuple(str(category["name"]) for category in ordered)

    def read(work: Work) -> FileObjects:
        table, rows = tables[work.split]
        return table.objects(rows[str(work.image)])

    return Source(names, works, read, notes)


def parts_of(settings: LabelSettings, kind: str = "instances") -> Mapping[str, tuple[Path, list[Path]]]:
    """Return for each split its JSON and the folders in which its images may lie, the likeliest first."""
    source = settings.source
    if source.suffix.lower() in (".yaml", ".yml"):
        data = load_data(str(source))
        return {split: (require_annotations(data, split), list(data.split(split))) for split in data.annotations}
    if source.is_file():
        files, root = [source], source.parent.parent if source.parent.name == "annotations" else source.parent
    else:
        files, root = sorted([*source.glob(f"annotations/{kind}_*.json"), *source.glob(f"{kind}_*.json")]), source
    if not files:
        raise UserError(f"{source}: no {kind}_*.json in it or in its folder `annotations`; name the JSON itself")
    parts = {}
    for file in files:
        split = re.sub(f"^{kind}_", "", file.stem) or settings.split
        short = re.sub(r"\d+$", "", split)
        usual = (f"images/{split}", split, f"images/{short}", short, "images", ".")
        folders = [Path(settings.pictures)] if settings.pictures else [root / name for name in usual]
        there = [folder for folder in folders if folder.is_dir()]
        if not there:
            raise UserError(f"{file}: no folder of images found; give it with --pictures")
        parts[split] = (file, there[:1])
    return parts
