"""Paths of images and of their annotation files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.input_files import walk_files
from utils.core.yaml_file import read_text
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash

# (image folder, annotation folder beside it)
ANNOTATION_FOLDERS = (
    ("JPEGImages", "Annotations"),
    ("images", "Annotations"),
    ("images", "annotations"),
    ("images", "labels"),
)
_SAMPLED_IMAGES = 100  # enough to tell in which of the folders the annotations are


def suffix_of(name: str) -> str:
    """Return the file suffix in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path per image costs a second on a large set


def find_images(source: Path, root: Path) -> list[str]:
    """Find the images of one path in a data YAML.

    Args:
        source: a folder, searched with its subfolders; a list file; or a single image.
        root: root of the data set, for relative paths in a list file.

    Returns:
        The image files, in no particular order.

    Raises:
        UserError: a list file is unreadable or has a line that is not an image path.
    """
    if source.is_dir():
        return [
            os.path.join(folder, name)  # noqa: PTH118
            for folder, names in walk_files(source)
            for name in names
            if suffix_of(name) in IMAGE_SUFFIXES and not name.startswith("._")  # macOS resource forks
        ]
    if suffix_of(source.name) in IMAGE_SUFFIXES:
        return [str(source)]
    return _read_image_list(source, root)


def split_images(data: DataConfig, split: str) -> list[str]:
    """List all images of a split in sorted order.

    Raises:
        UserError: there are none.
    """
    sources = data.split(split)
    images = sorted(dict.fromkeys(path for source in sources for path in find_images(source, data.root)))
    if not images:
        raise no_images_error(data, sources)
    return images


def no_images_error(data: DataConfig, folders: Sequence[Path], where: str = "in") -> UserError:
    """Create the error for a split without images."""
    suffixes = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    return UserError(f"{data.source}: no images ({suffixes}) {where} {', '.join(map(str, folders))}")


def read_list(path: Path) -> list[tuple[int, str]]:
    """Read the non-empty lines of a list file with their line numbers."""
    lines = enumerate(read_text(path, "image list", file_names=True).split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _read_image_list(path: Path, root: Path) -> list[str]:
    """Read image paths from a list file; relative paths start at the folder of the list or at the root."""
    lines = read_list(path)
    base = path.parent
    relative = [line for _, line in lines if not Path(line).is_absolute()]
    if relative and not (base / relative[0]).exists() and (root / relative[0]).exists():
        base = root
    images = []
    for number, line in lines:
        if suffix_of(line) not in IMAGE_SUFFIXES or "\0" in line:
            raise UserError(f"{path}:{number}: {line[:80]!r} is not an image file; give one image path per line")
        images.append(os.path.normpath(os.path.join(base, line)))  # noqa: PTH118
    return images


def annotation_candidates(image: str, suffix: str) -> list[str]:
    """List the candidate annotation files of an image, the most likely first."""
    stem = os.path.splitext(image)[0]  # noqa: PTH122
    candidates = []
    for images, files in ANNOTATION_FOLDERS:
        before, found, after = stem.rpartition(f"{os.sep}{images}{os.sep}")
        if found:
            candidates.append(f"{before}{os.sep}{files}{os.sep}{after}{suffix}")
    return [*candidates, f"{stem}{suffix}"]


def annotation_files(images: Sequence[str], suffix: str) -> list[str]:
    """Locate the annotation file of each image.

    Args:
        images: image files.
        suffix: suffix of the annotation files.

    Returns:
        A path per image, all from the candidate folder that has most annotations of the first images.
    """
    if not images:
        return []
    counts: dict[int, int] = {}
    for image in images[:_SAMPLED_IMAGES]:
        candidates = annotation_candidates(image, suffix)
        for from_end in range(1, len(candidates) + 1):  # the number of candidates may differ between images
            exists = os.path.exists(candidates[-from_end])  # noqa: PTH110
            counts[from_end] = counts.get(from_end, 0) + exists
    best = max(counts, key=lambda from_end: (counts[from_end], from_end))
    chosen = []
    for image in images:
        candidates = annotation_candidates(image, suffix)
        chosen.append(candidates[-min(best, len(candidates))])
    return chosen


def cache_path(folder: Path, data: DataConfig, split: str) -> Path:
    """Build the path of a split's scan cache beside `folder`, which other splits may share."""
    return folder.with_name(f"{folder.name}.{short_hash([*map(str, data.split(split))])}{CACHE_SUFFIX}")


def fingerprint_of(data: DataConfig, name: str) -> str:
    """Build `SplitFiles.fingerprint` for a format that refers to classes by name."""
    return "\n".join([name, *label_class_names(data)])


def label_class_names(data: DataConfig) -> tuple[str, ...]:
    """Return the class names used in the label files, which --single-cls and `label_names` may replace."""
    return data.label_names or data.names


def require_annotations(data: DataConfig, split: str, reader: str, kind: str) -> Path:
    """Return the JSON of a split.

    Args:
        data: data set.
        split: name of the split.
        reader: format of the data set, for messages.
        kind: annotations in the JSON as COCO names its files, `instances` or `panoptic`, for messages.

    Raises:
        UserError: the data YAML does not name it or it does not exist.
    """
    if split not in data.annotations:
        raise UserError(
            f"{data.source}: `format: {reader}` needs the JSON of this split: `annotations: {{{split}: "
            f"annotations/{kind}_{split}2017.json}}`"
        )
    if not data.annotations[split].is_file():
        raise UserError(f"{data.source}: `annotations: {split}:` not found; looked for {data.annotations[split]}")
    return data.annotations[split]
