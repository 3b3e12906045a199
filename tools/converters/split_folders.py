"""The splits that a folder holds, found by the usual names of folders and lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import Work, given_names, works_below
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.datasets.labels.annotation_paths import find_images

USUAL = ("train", "val", "valid", "test", "trainval")


def opened(settings: LabelSettings, data_format: str) -> DataConfig:
    """Return the data that `--source` names, a data YAML or a folder, with `--names` in place of its own."""
    source = settings.source
    if source.suffix.lower() in (".yaml", ".yml"):
        data = load_data(str(source))
        names = given_names(settings.names) or data.names
        return replace(data, names=names, format=data_format)
    if not source.is_dir():
        raise UserError(f"--source {source}: a folder or a data YAML is expected")
    names = given_names(settings.names, source)
    return DataConfig(source, source, names, splits_of(source, settings.split), format=data_format)


def splits_of(root: Path, single: str) -> dict[str, tuple[Path, ...]]:
    """Return the places of the splits below a folder; without any the folder itself is the split `single`.

    Looked for: `ImageSets/Main/train.txt`, `images/train`, `train/images`, `train`, with train, val, valid, test; and
    the folders `images` or `JPEGImages` as one split.
    """
    lists = root / "ImageSets" / "Main"
    patterns = [
        lambda name: lists / f"{name}.txt",
        lambda name: root / "images" / name,
        lambda name: root / name / "images",
        lambda name: root / name,
    ]
    for place in patterns:
        found: dict[str, tuple[Path, ...]] = {name: (place(name),) for name in USUAL if place(name).exists()}
        if "train" in found or "val" in found:
            found.pop("trainval", None)  # the two together
        if found:
            return found
    subfolders = sorted(p for p in (root / "images").glob("*") if p.is_dir()) if (root / "images").is_dir() else []
    if subfolders:
        return {folder.name: (folder,) for folder in subfolders}
    inner = next((root / name for name in ("images", "JPEGImages") if (root / name).is_dir()), root)
    return {single: (inner,)}


def image_works(data: DataConfig) -> list[Work]:
    """Return the images of all splits."""
    works: list[Work] = []
    for split, places in data.splits.items():
        data.split(split)  # says what is not there
        for place in places:
            paths = sorted(dict.fromkeys(find_images(place, data.root)))
            works += works_below(place if place.is_dir() else data.root, paths, split)
    return works


def named(data: DataConfig, found: Iterable[str]) -> tuple[str, ...]:
    """Return the classes: those that are given, else all that the labels name, sorted."""
    names = data.names or tuple(sorted(set(found)))
    if not names:
        raise UserError(f"{data.source}: no class names given or found; give them with --names")
    return names
