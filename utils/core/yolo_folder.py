"""Folders of YOLO labels without a data YAML: Label Studio's `classes.txt`, and Darknet's and CVAT's `obj.data`.

In `core` because `core.data_config` accepts such a folder in place of a YAML.
"""

from __future__ import annotations

from pathlib import Path

from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.yaml_file import read_text

CLASS_LIST = "classes.txt"  # beside `images` and `labels`, with a class name per line
_KEYS = {"train": "train", "valid": "val", "test": "test"}  # of a .data file -> split

Contents = tuple[tuple[str, ...], dict[str, tuple[Path, ...]], Path]
"""Class names, the paths of each split, and the folder at which relative paths in lists start."""


def read_yolo_folder(root: Path) -> Contents | None:
    """Read the description of a folder with YOLO labels.

    Args:
        root: The folder.

    Returns:
        Its contents, or None if the folder has neither `classes.txt` beside `images` nor a `.data` file.

    Raises:
        UserError: A file is damaged, or the images it names are missing.
    """
    described = sorted(root.glob("*.data"))
    if described:
        return _read_darknet(described[0])
    if (root / CLASS_LIST).is_file() and (root / "images").is_dir():
        return _lines(root / CLASS_LIST), _image_folders(root / "images"), root
    return None


def _lines(path: Path) -> tuple[str, ...]:
    lines = tuple(line.strip() for line in read_text(path, "list of names").splitlines())
    if not any(lines):
        raise UserError(f"{path}: is empty; give one class name per line")
    return tuple(line for line in lines if line)


def _image_folders(images: Path) -> dict[str, tuple[Path, ...]]:
    """Find a folder per split below `images`; without any, all images are in both splits."""
    found: dict[str, tuple[Path, ...]] = {
        split: (images / split,) for split in ("train", "val", "test") if (images / split).is_dir()
    }
    if found:
        return found
    LOGGER.warning(
        f"{images}: not divided into train and val, so validation uses the training images; "
        "`python convert.py split` divides them"
    )
    return {"train": (images,), "val": (images,)}


def _read_darknet(path: Path) -> Contents:
    """Read `key = value` lines; paths start at the folder, or at its parent as in Darknet's `data/train.txt`."""
    values: dict[str, str] = {}
    for line in read_text(path, "Darknet data file").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            values[key.strip()] = value.strip()
    if missing := [key for key in ("train", "names") if not values.get(key)]:
        raise UserError(f"{path}: no line `{missing[0]} = …`")
    names = _lines(_find(path, values["names"]))
    if values.get("classes", "").isdigit() and int(values["classes"]) != len(names):
        raise UserError(f"{path}: `classes = {values['classes']}`, but {values['names']} lists {len(names)}")
    splits: dict[str, tuple[Path, ...]] = {
        split: (_find(path, values[key]),) for key, split in _KEYS.items() if values.get(key)
    }
    if "val" not in splits:
        LOGGER.warning(f"{path}: no `valid =`, so validation uses the training images; add a list of other images")
        splits["val"] = splits["train"]
    return names, splits, _find_base(path, splits["train"][0])


def _find(path: Path, text: str) -> Path:
    """Find a file that a .data file names."""
    for candidate in (path.parent / text, path.parent.parent / text, path.parent / Path(text).name):
        if candidate.exists():
            return candidate
    raise UserError(
        f"{path}: names {text}, which is neither below {path.parent} nor below its parent; correct the path"
    )


def _find_base(path: Path, listed: Path) -> Path:
    """Find the folder at which the relative paths of a list start."""
    if listed.is_dir():
        return path.parent
    first = next(iter(_lines(listed)))
    for base in (listed.parent, path.parent, path.parent.parent):
        if (base / first).exists():
            return base
    raise UserError(
        f"{listed}: its first image, {first}, is neither below {path.parent} nor below its parent; correct the list, "
        f"or rename the folder to {Path(first).parts[0]}"
    )
