"""Where images and their annotation files lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets.image_files import IMAGE_SUFFIXES
from utils.datasets.labels.label_index import CACHE_SUFFIX

# folder of images -> folder of annotations beside it; "" is the same folder
BESIDE = (("JPEGImages", "Annotations"), ("images", "Annotations"), ("images", "annotations"), ("images", "labels"))


def suffix_of(name: str) -> str:
    """Return the suffix in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path per image costs a second on a large set


def images_in(place: Path, root: Path) -> list[str]:
    """Return the image files of a folder (with its subfolders), of a list file, or the single image itself."""
    if place.is_dir():
        return [
            os.path.join(folder, name)  # noqa: PTH118
            for folder, _, names in os.walk(place, followlinks=True)
            for name in names
            if suffix_of(name) in IMAGE_SUFFIXES and not name.startswith("._")
        ]
    if suffix_of(place.name) in IMAGE_SUFFIXES:
        return [str(place)]
    return _listed(place, root)


def images_of(data: DataConfig, split: str) -> list[str]:
    """Return the images at all places of a split, sorted; none is a UserError."""
    places = data.split(split)
    images = sorted(dict.fromkeys(path for place in places for path in images_in(place, data.root)))
    if not images:
        wanted = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"{data.source}: no images ({wanted}) in {', '.join(map(str, places))}")
    return images


def lines_of(place: Path) -> list[tuple[int, str]]:
    """Return the lines of a list file that say something, with their numbers."""
    lines = enumerate(read_text(place, "image list").splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _listed(place: Path, root: Path) -> list[str]:
    """Return the images that a list file names, one a line; relative ones lie beside the list or below the root."""
    lines = lines_of(place)
    base = place.parent
    relative = [line for _, line in lines if not Path(line).is_absolute()]
    if relative and not (base / relative[0]).exists() and (root / relative[0]).exists():
        base = root
    images = []
    for number, line in lines:
        if suffix_of(line) not in IMAGE_SUFFIXES or "\0" in line:
            raise UserError(f"{place}:{number}: {line[:80]!r} is not an image file; a list has one image path a line")
        images.append(os.path.normpath(os.path.join(base, line)))  # noqa: PTH118
    return images


def annotation_places(image: str, suffix: str) -> list[str]:
    """Return where the annotation file of an image may lie, the likeliest first."""
    stem = os.path.splitext(image)[0]  # noqa: PTH122
    places = []
    for images, files in BESIDE:
        before, found, after = stem.rpartition(f"{os.sep}{images}{os.sep}")
        if found:
            places.append(f"{before}{os.sep}{files}{os.sep}{after}{suffix}")
    return [*places, f"{stem}{suffix}"]


def annotation_files(images: Sequence[str], suffix: str) -> list[str]:
    """Return the annotation file of each image: all in the place where most of the first hundred have theirs."""
    if not images:
        return []
    counts: dict[int, int] = {}
    for image in images[:100]:
        places = annotation_places(image, suffix)
        for from_end in range(1, len(places) + 1):  # images beside each other may have unlike numbers of places
            counts[from_end] = counts.get(from_end, 0) + os.path.exists(places[-from_end])  # noqa: PTH110
    best = max(counts, key=lambda from_end: (counts[from_end], from_end))
    chosen = []
    for image in images:
        places = annotation_places(image, suffix)
        chosen.append(places[-min(best, len(places))])
    return chosen


def cache_path(folder: Path, data: DataConfig, split: str) -> Path:
    """Return where the index of a split may be kept: beside `folder`, which other splits may share."""
    places = "\n".join(map(str, data.split(split)))
    return folder.with_name(f"{folder.name}.{hashlib.sha256(places.encode()).hexdigest()[:8]}{CACHE_SUFFIX}")


def meaning_of(data: DataConfig, name: str) -> str:
    """Return what labels of a format that names its classes depend on besides files."""
    return "\n".join([name, *class_names(data)])


def class_names(data: DataConfig) -> tuple[str, ...]:
    """Return what the labels call the classes; with --single-cls that is not what they are called in the end."""
    return data.label_names or data.names
