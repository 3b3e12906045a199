"""Detection of the splits in a folder by the common names of folders and list files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import SourceImage, images_below, read_class_names
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.datasets.generators import ensure_generated
from utils.datasets.labels.annotation_paths import find_images

SPLIT_NAMES = ("train", "val", "valid", "test", "trainval")


def open_dataset(settings: LabelSettings, data_format: str) -> DataConfig:
    """Open the data YAML or folder that `--source` names; `--names` replaces its class names."""
    source = settings.source
    if source.suffix.lower() in (".yaml", ".yml"):
        data = load_data(str(source))
        ensure_generated(data)
        names = read_class_names(settings.names) or data.names
        return replace(data, names=names, format=data_format)
    if not source.is_dir():
        raise UserError(f"--source {source}: expected a folder or a data YAML")
    names = read_class_names(settings.names, source)
    return DataConfig(source, source, names, find_splits(source, settings.split), format=data_format)


def find_splits(root: Path, single: str) -> dict[str, tuple[Path, ...]]:
    """Find the splits below a folder.

    Recognised are `ImageSets/Main/train.txt`, `images/train`, `train/images` and `train`, likewise for the other
    SPLIT_NAMES; then any folders below `images`.

    Args:
        root: The folder.
        single: Name of the split if there are none; its images are in `images`, `JPEGImages` or the folder itself.

    Returns:
        List files or image folders by split.
    """
    lists = root / "ImageSets" / "Main"
    patterns = [
        lambda name: lists / f"{name}.txt",
        lambda name: root / "images" / name,
        lambda name: root / name / "images",
        lambda name: root / name,
    ]
    for path_of in patterns:
        found: dict[str, tuple[Path, ...]] = {name: (path_of(name),) for name in SPLIT_NAMES if path_of(name).exists()}
        if "train" in found or "val" in found:
            found.pop("trainval", None)  # train and val together
        if found:
            return found
    subfolders = sorted(p for p in (root / "images").glob("*") if p.is_dir()) if (root / "images").is_dir() else []
    if subfolders:
        return {folder.name: (folder,) for folder in subfolders}
    inner = next((root / name for name in ("images", "JPEGImages") if (root / name).is_dir()), root)
    return {single: (inner,)}


def list_images(data: DataConfig) -> list[SourceImage]:
    """List the images of all splits; raises UserError for paths that do not exist."""
    images: list[SourceImage] = []
    for split in data.splits:
        for path in data.split(split):
            files = sorted(dict.fromkeys(find_images(path, data.root)))
            images += images_below(path if path.is_dir() else data.root, files, split)
    return images


def resolve_class_names(data: DataConfig, found: Iterable[str]) -> tuple[str, ...]:
    """Get the class names: those of `data`, otherwise all names found in labels, sorted."""
    names = data.names or tuple(sorted(set(found)))
    if not names:
        raise UserError(f"{data.source}: no class names given or found; set --names")
    return names
