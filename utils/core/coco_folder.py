"""COCO's folder layout without a data YAML: images by split and annotations/instances_<split>.json.

In `core` because `core.data_config` accepts such a folder in place of a YAML.
"""

from __future__ import annotations

import json
from pathlib import Path

from utils.core.coco_categories import require_unique_ids
from utils.core.errors import UserError
from utils.core.input_files import require_regular

_PREFIX = "instances_"


def find_coco_splits(root: Path, splits: tuple[str, ...]) -> dict[str, tuple[Path, Path]]:
    """Find the splits of a folder in COCO's layout.

    The images of instances_val2017.json are in val2017 or images/val2017, also without the year. The last year counts
    if there are several.

    Args:
        root: the folder.
        splits: names of splits.

    Returns:
        Image folder and JSON of each split that has both.
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


def read_category_names(files: list[Path]) -> tuple[str, ...]:
    """Read the category names in ascending order of ids from the smallest of COCO JSONs with the same categories.

    Raises:
        UserError: the file has no valid `categories`.
    """
    path = min(files, key=lambda file: file.stat().st_size)
    try:
        require_regular(path)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        names = tuple(str(category["name"]) for category in categories)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a COCO JSON with `categories`, each with `id` and `name` ({error})") from error
    if not names:
        raise UserError(f"{path}: `categories` is empty")
    require_unique_ids(path, categories)
    return names
