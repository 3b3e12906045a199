"""Images in folders or list files, each with a text file of boxes or polygons (behaviour.md 4.2)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from utils.core.config import DataConfig
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets import READERS
from utils.datasets.images import IMAGE_SUFFIXES
from utils.datasets.index import CACHE_SUFFIX, Listing
from utils.datasets.label_lines import read_labels


@READERS.register("yolo")
def read_yolo(data: DataConfig, split: str) -> Listing:
    """Return the images of a split and where their labels lie."""
    places = data.split(split)
    images = [path for place in places for path in images_in(place, data.root)]
    images = sorted(dict.fromkeys(images))
    if not images:
        wanted = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"{data.source}: no images ({wanted}) in {', '.join(map(str, places))}")
    labels = [label_path(path) for path in images]
    folder = Path(labels[0]).parent
    name = folder.name
    if len(places) > 1 or not places[0].is_dir():  # other splits may have their labels in the same folder
        name += "." + hashlib.sha256("\n".join(map(str, places)).encode()).hexdigest()[:8]
    return Listing(images, labels, lambda i: read_labels(Path(labels[i])), folder.with_name(name + CACHE_SUFFIX))


def label_path(image: str) -> str:
    """Return where the labels of an image lie: the last /images/ becomes /labels/, the suffix .txt."""
    stem = os.path.splitext(image)[0]  # noqa: PTH122 - a Path per image costs a second on a large set
    before, found, after = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}.txt" if found else f"{stem}.txt"


def images_in(place: Path, root: Path) -> list[str]:
    """Return the image files of a folder (with its subfolders), of a list file, or the single image itself."""
    if place.is_dir():
        return [
            os.path.join(folder, name)  # noqa: PTH118
            for folder, _, names in os.walk(place, followlinks=True)
            for name in names
            if _suffix(name) in IMAGE_SUFFIXES and not name.startswith("._")
        ]
    if _suffix(place.name) in IMAGE_SUFFIXES:
        return [str(place)]
    return _listed(place, root)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _listed(place: Path, root: Path) -> list[str]:
    """Return the images that a list file names, one a line; relative ones lie beside the list or below the root."""
    lines = [(number, line.strip()) for number, line in enumerate(read_text(place, "image list").splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    base = place.parent
    relative = [line for _, line in lines if not Path(line).is_absolute()]
    if relative and not (base / relative[0]).exists() and (root / relative[0]).exists():
        base = root
    images = []
    for number, line in lines:
        if _suffix(line) not in IMAGE_SUFFIXES or "\0" in line:
            raise UserError(f"{place}:{number}: {line[:80]!r} is not an image file; a list has one image path a line")
        images.append(os.path.normpath(os.path.join(base, line)))  # noqa: PTH118
    return images
