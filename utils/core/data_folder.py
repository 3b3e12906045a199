"""Data sets that are a folder without a data YAML: COCO's layout, exports of labelling tools, class folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from utils.core.annotation_folder import NAMED_FORMATS, find_named_format
from utils.core.coco_folder import find_coco_splits, read_category_names
from utils.core.errors import UserError
from utils.core.yolo_folder import read_yolo_folder


@dataclass(frozen=True)
class FolderContents:
    """Contents of a folder in the terms of a data YAML, whose keys have the same names."""

    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]
    root: Path
    format: str = "auto"
    annotations: dict[str, Path] = field(default_factory=dict)  # COCO JSON by split


def read_folder(root: Path, splits: tuple[str, ...]) -> FolderContents:
    """Read a folder: in COCO's layout, of YOLO labels, or train, val and test with a folder of images per class.

    In the last one, the test images replace a missing val split, and the folders of the training images in
    alphabetical order are the classes.

    Args:
        root: The folder.
        splits: Names of splits.

    Returns:
        Its contents.

    Raises:
        UserError: It has none of these layouts, or a file in it is damaged.
    """
    if parts := find_coco_splits(root, splits):
        names = read_category_names([file for _, file in parts.values()])
        images: dict[str, tuple[Path, ...]] = {split: (folder,) for split, (folder, _) in parts.items()}
        return FolderContents(names, images, root, "coco", {split: file for split, (_, file) in parts.items()})
    if described := read_yolo_folder(root):
        return FolderContents(*described)
    if named := find_named_format(root):
        out = f"{root.resolve().name}-split"
        raise UserError(
            f"{root}: a {NAMED_FORMATS[named]} folder without a data YAML; run `python convert.py split --source "
            f"{root} --out {out}`, which finds its classes and divides it into train and val, and give --data {out}"
        )
    found: dict[str, tuple[Path, ...]] = {split: (root / split,) for split in splits if (root / split).is_dir()}
    if "val" not in found and "test" in found:
        found["val"] = found["test"]
    first = found.get("train") or found.get("val")
    if first is None:
        raise UserError(
            f"{root}: expected a data-set YAML, a folder with train/<class>/ and val/<class>/, COCO's layout, or YOLO "
            "labels with data.yaml, classes.txt or obj.data"
        )
    classes = sorted(entry.name for entry in first[0].iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{first[0]}: no folders of images; expected one per class")
    return FolderContents(tuple(classes), found, root, "folders")
