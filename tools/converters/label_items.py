"""What travels from a source of labels to a target."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.core.data_config import load_data
from utils.core.data_paths import find_data
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject

IGNORE, BACKGROUND = "__ignore__", "_background_"  # in lists of names (behaviour.md 12.10)
NO_CLASS = 255  # in masks


@dataclass(frozen=True)
class Work:
    """One image to convert."""

    split: str
    image: Path  # of masks without images: the mask
    name: str  # below the folder of its split, without suffix, / between folders
    has_image: bool = True


@dataclass(frozen=True)
class Source:
    """What a source holds. `read` returns the objects of one image; their names are among `names`, or not wanted."""

    names: tuple[str, ...]
    works: list[Work]
    read: Callable[[Work], FileObjects]
    notes: list[str] = field(default_factory=list)
    has_boxes: bool = True  # False: nothing but maps of classes


@dataclass
class Item:
    """One image with its objects in its pixels, all of them inside, named, and with an area."""

    work: Work
    size_hw: tuple[int, int]
    objects: list[LabelledObject]
    semantic: np.ndarray | None = None  # (H, W) uint8


def located(source: Path) -> Path:
    """Return where `--source` lies: a data YAML is also found by its name, as `--data` is."""
    return find_data(str(source)) if source.suffix.lower() in (".yaml", ".yml") else source


def given_names(text: str, folder: Path | None = None) -> tuple[str, ...]:
    """Return the class names that `--names` or a usual file in `folder` gives, without `__ignore__`; () if none does.

    `text` is a file with a name on every line, a data YAML, or names with commas between.
    """
    if not text and folder is not None:
        usual = ("data.yaml", "classes.txt", "names.txt", "obj.names", "labels/classes.txt")
        text = next((str(folder / name) for name in usual if (folder / name).is_file()), "")
    if not text:
        return ()
    path = Path(text)
    if path.suffix.lower() in (".yaml", ".yml"):
        return load_data(text).names
    if path.is_file():
        found = [line.strip() for line in read_text(path, "list of names").splitlines()]
    elif "," in text or not re.search(r"[./\\]", text):
        found = [name.strip() for name in text.split(",")]
    else:
        raise UserError(f"--names {text}: no such file; give a file of names, a data YAML, or names like cat,dog")
    names = tuple(name for name in found if name and name != IGNORE)
    if len(set(names)) < len(names):
        raise UserError(f"--names {text}: a name stands twice")
    return names


def works_below(folder: Path, paths: list[str], split: str) -> list[Work]:
    """Return the work of image files, named by where they lie below `folder`."""
    works = []
    for path in map(Path, paths):
        below = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        works.append(Work(split, path, below.with_suffix("").as_posix()))
    return works
