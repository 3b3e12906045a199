"""What a layout of class maps is: where an image's mask lies, what its values mean, how training changes sizes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig, SemanticConfig
from utils.core.errors import UserError
from utils.datasets.image_files import IMAGE_SUFFIXES
from utils.datasets.labels.annotation_paths import images_in
from utils.datasets.labels.label_index import CACHE_SUFFIX

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # of formats that lose nothing
OUTSIDE = -1  # in tables: a value that no mask may hold


@dataclass(frozen=True)
class Draws:
    """What training draws for an image (behaviour.md 12.6); the YAML's `semantic:` block may change each."""

    base: int = 0  # long side around which sizes are drawn, in pixels; 0: the image size of the run
    low: float = 0.75  # smallest and largest long side, in parts of `base`
    high: float = 1.5
    std: float = 35.0  # of the normal distribution of sizes, in steps of 32 pixels
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)  # brightness, contrast, saturation, hue
    crop: tuple[float, float] = (1.0, 1.0)  # width and height, in parts of the image size of the run
    flip: float = 0.5


@dataclass(frozen=True)
class SemanticListing:
    """What a layout's `read` found: images, the mask of each, and what the values of the masks mean."""

    images: list[str]
    masks: list[str]  # where there is none: where it should be
    tables: np.ndarray  # (k, 256) int16: class by value, IGNORED_PIXEL, or OUTSIDE
    table_of: np.ndarray  # (n,) uint8: the table of each mask
    cache: Path  # where what is found out about them may be kept
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rule:
    """How the masks of a layout are found.

    `folders` gives the folders in which the masks of an image folder may lie, best first; `stems` the names, without
    suffix, that the mask of an image with a certain stem may have. `place` turns what the YAML names into the folder
    of the images; `wanted` tells images from other files by name.
    """

    folders: Callable[[Path], list[Path]]
    stems: Callable[[str], tuple[str, ...]] = lambda stem: (stem,)
    place: Callable[[Path, str], Path] = lambda place, split: place
    wanted: Callable[[str], bool] = lambda name: True
    table_of: Callable[[str], int] = lambda name: 0  # by the mask's stem
    only_labelled: bool = False  # an image without a mask is left out, instead of being a fault


@dataclass(frozen=True)
class Layout:
    """An entry of SEMANTIC_READERS. `read(data, split)` lists a split; `takes` are the options that it obeys."""

    read: Callable[[DataConfig, str], SemanticListing]
    draws: Draws = field(default_factory=Draws)
    takes: tuple[str, ...] = ("ids", "ignore")

    def draws_for(self, data: DataConfig) -> Draws:
        """Return what training draws, with the YAML's own settings; a UserError names what does not fit."""
        config = semantic_of(data)
        names = {known.name for known in fields(Draws)}
        if unused := sorted(config.options.keys() - names - set(self.takes)):
            raise UserError(f"{data.source}: `semantic.{unused[0]}:` means nothing to the format {config.format}")
        own: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in config.options.items()
            if key in names
        }
        draws = replace(self.draws, **own)
        if draws.low > draws.high:
            raise UserError(f"{data.source}: `semantic.low: {draws.low}` is above `semantic.high: {draws.high}`")
        if draws.jitter[3] > 0.5:
            raise UserError(f"{data.source}: the hue in `semantic.jitter:` goes to 0.5, got {draws.jitter[3]}")
        return draws


def semantic_of(data: DataConfig) -> SemanticConfig:
    """Return the `semantic:` block; UserError if there is none."""
    if data.semantic is None:
        raise UserError(f"{data.source}: no `semantic:` block, so its images have no class per pixel")
    return data.semantic


def plain_table(config: SemanticConfig) -> np.ndarray:
    """Return (256,) int16: values are classes, or what `ids` says; 255 and those in `ignore` are no label."""
    table = np.full(256, OUTSIDE, np.int16)
    ids = config.options.get("ids") or {number: number for number in range(len(config.names))}
    for value, number in ids.items():
        table[value] = number
    if IGNORED_PIXEL not in ids:
        table[IGNORED_PIXEL] = IGNORED_PIXEL
    table[config.options.get("ignore", [])] = IGNORED_PIXEL
    return table


def list_pairs(data: DataConfig, split: str, rule: Rule, tables: list[np.ndarray] | None = None) -> SemanticListing:
    """Return the images of a split with their masks by a layout's rule. UserError: there is none."""
    config = semantic_of(data)
    root = config.root or data.root
    places = [rule.place(place, split) for place in data.semantic_split(split)]
    given = config.masks.get(split, ())
    if given and len(given) not in (1, len(places)):
        raise UserError(f"{data.source}: `semantic.masks.{split}:` names {len(given)} folders for {len(places)} places")
    finder, images, masks = _Finder(rule), [], []
    for number, place in enumerate(places):
        folder = given[min(number, len(given) - 1)] if given else None
        for image in sorted(path for path in images_in(place, root) if rule.wanted(os.path.basename(path))):  # noqa: PTH119
            images.append(image)
            masks.append(finder.mask_of(image, folder, place))
    if not images:
        wanted = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"{data.source}: no images ({wanted}) in {', '.join(map(str, places))}")
    images, masks, notes = _once(images, masks)
    if rule.only_labelled:
        images, masks, notes = _labelled(data, images, masks, notes, finder)
    tables = tables or [plain_table(config)]
    folder = Path(masks[0]).parent
    place_text = "\n".join([split, *map(str, places), *map(str, given)])
    name = f"{folder.name}.{hashlib.sha256(place_text.encode()).hexdigest()[:8]}.semantic{CACHE_SUFFIX}"
    return SemanticListing(
        images=images,
        masks=masks,
        tables=np.stack(tables),
        table_of=np.array([rule.table_of(Path(mask).stem) for mask in masks], np.uint8),
        cache=folder.with_name(name),
        notes=notes,
    )


def _once(images: list[str], masks: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return images that are listed several times only once, and a note about each."""
    times = Counter(images)
    mask_of = dict(zip(images, masks, strict=True))
    notes = [f"{image}: listed {count} times, used once" for image, count in times.items() if count > 1]
    return list(mask_of), list(mask_of.values()), notes


def _labelled(
    data: DataConfig, images: list[str], masks: list[str], notes: list[str], finder: _Finder
) -> tuple[list[str], list[str], list[str]]:
    """Return the images that have a mask, and a note about the others."""
    kept = [row for row, mask in enumerate(masks) if finder.exists(mask)]
    if not kept:
        raise UserError(f"{data.source}: none of {len(images)} images has a mask; looked for {masks[0]}")
    if len(kept) < len(images):
        notes = [*notes, f"{data.source}: {len(images) - len(kept)} of {len(images)} images without a mask left out"]
    return [images[row] for row in kept], [masks[row] for row in kept], notes


class _Finder:
    """Looks masks up; every folder is read once."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._folders: dict[str, Path] = {}
        self._names: dict[Path, set[str]] = {}

    def mask_of(self, image: str, given: Path | None, place: Path) -> str:
        """Return the mask of an image, below the folder `given` or where the layout has it."""
        parent, name = os.path.split(image)
        if given is not None:
            below = os.path.relpath(parent, place) if place.is_dir() else "."
            folder = Path(os.path.normpath(given / below)) if not below.startswith("..") else given
        else:
            if parent not in self._folders:
                candidates = self.rule.folders(Path(parent))
                self._folders[parent] = next((path for path in candidates if path.is_dir()), candidates[0])
            folder = self._folders[parent]
        stems = self.rule.stems(os.path.splitext(name)[0])  # noqa: PTH122
        present = self._in(folder)
        options = (stem + suffix for stem in stems for suffix in MASK_SUFFIXES)
        found = next((option for option in options if option in present), stems[0] + MASK_SUFFIXES[0])
        return os.path.join(folder, found)  # noqa: PTH118

    def exists(self, mask: str) -> bool:
        """Tell whether a mask that `mask_of` returned is there."""
        folder, name = os.path.split(mask)
        return name in self._in(Path(folder))

    def _in(self, folder: Path) -> set[str]:
        if folder not in self._names:
            self._names[folder] = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208
        return self._names[folder]


def swapped(folder: Path, pairs: Iterable[tuple[str, str]]) -> list[Path]:
    """Return `folder` with its last component called `old` called `new`, for each pair that fits."""
    found = []
    for old, new in pairs:
        parts = list(folder.parts)
        for place in range(len(parts) - 1, -1, -1):
            if parts[place] == old:
                found.append(Path(*parts[:place], *new.split("/"), *parts[place + 1 :]))
                break
    return found
