"""COCO's own layout of a data set: images by split, annotations/instances_<split>.json, no YAML (behaviour.md 13.2)."""

from __future__ import annotations

import json
from pathlib import Path

from utils.core.errors import UserError

_PREFIX = "instances_"


def coco_annotations(root: Path, splits: tuple[str, ...]) -> dict[str, tuple[Path, Path]]:
    """Return the folder of images and the JSON of each split that `root` has both of.

    The images of instances_val2017.json are in val2017 or images/val2017, also without the year. Of several years the
    last one counts.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for split in splits:
        for file in sorted((root / "annotations").glob(f"{_PREFIX}{split}*.json")):
            name = file.stem.removeprefix(_PREFIX)
            for folder in (root / name, root / "images" / name, root / split, root / "images" / split):
                if folder.is_dir():
                    found[split] = (folder, file)
                    break
    return found


def category_names(files: list[Path]) -> tuple[str, ...]:
    """Return the names of the categories, by rising id, of the smallest of some files about the same categories."""
    path = min(files, key=lambda file: file.stat().st_size)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        names = tuple(str(category["name"]) for category in categories)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no COCO JSON with `categories`, each with `id` and `name` ({error})") from error
    if not names:
        raise UserError(f"{path}: `categories` is empty")
    return names
