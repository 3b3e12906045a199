"""Data passed from label sources to label targets, and the contract of a target."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.core.data_config import load_data
from utils.core.data_paths import find_data
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets.labels.annotation_objects import FileObjects, FilePanoptic, LabelledObject

IGNORE, BACKGROUND = "__ignore__", "_background_"  # reserved names in class lists, as LabelMe's tools use them
NO_CLASS = 255  # value of unlabelled pixels in semantic maps


@dataclass(frozen=True)
class SourceImage:
    """One image to convert."""

    split: str
    path: Path  # the image, or the mask for masks without images
    name: str  # path below the split's folder, without suffix, / between folders
    has_image: bool = True


@dataclass(frozen=True)
class LabelSource:
    """An opened source of labels, the result of `SOURCES.get(format)(settings)`."""

    names: tuple[str, ...]  # class names; objects with other names are left out
    images: list[SourceImage]
    read: Callable[[SourceImage], FileObjects]
    notes: list[str] = field(default_factory=list)
    stuff: tuple[str, ...] = ()  # those of `names` that are no things


@dataclass
class LabelledImage:
    """One image with its valid objects in pixels: inside the image, of a known class, with a positive area."""

    source: SourceImage
    size_hw: tuple[int, int]
    objects: list[LabelledObject]
    semantic: np.ndarray | None = None  # (H, W) uint8 semantic map
    panoptic: FilePanoptic | None = None


class LabelTarget(Protocol):
    """Writer of a label format, built as `TARGETS.get(format)(output, settings, names, report)`."""

    def add(self, item: LabelledImage) -> None:
        """Write one image and its labels."""
        ...

    def finish(self) -> None:
        """Write the files that describe the whole data set."""
        ...


def resolve_source(source: Path) -> Path:
    """Resolve `--source`: a data YAML is also found by its name, like --data of the other programs."""
    return find_data(str(source)) if source.suffix.lower() in (".yaml", ".yml") else source


def read_class_names(text: str, folder: Path | None = None) -> tuple[str, ...]:
    """Read the class names that `--names` gives.

    Args:
        text: A file with one name per line, a data YAML, or comma-separated names; empty: look into `folder`.
        folder: Folder that may have a data.yaml, classes.txt or the like.

    Returns:
        The names without `__ignore__`; empty if none are given.

    Raises:
        UserError: The file is missing, or a name occurs twice.
    """
    if not text and folder is not None:
        candidates = ("data.yaml", "classes.txt", "names.txt", "obj.names", "labels/classes.txt")
        text = next((str(folder / name) for name in candidates if (folder / name).is_file()), "")
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
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"--names {text}: the name {twice!r} occurs twice")
    return names


def images_below(folder: Path, paths: list[str], split: str) -> list[SourceImage]:
    """Create records of image files, named by their paths below `folder`."""
    images = []
    for path in map(Path, paths):
        below = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        images.append(SourceImage(split, path, below.with_suffix("").as_posix()))
    return images
