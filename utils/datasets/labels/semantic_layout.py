"""Layouts of semantic data sets: where masks are, what their values mean, and how training augments the images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig, SemanticConfig
from utils.core.errors import UserError
from utils.datasets.labels.annotation_paths import find_images, no_images_error
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # lossless formats
INVALID = -1  # in tables: a value that masks must not have
_MAX_HUE = 0.5  # half a turn reaches every hue


@dataclass(frozen=True)
class SemanticAugment:
    """Augmentation of semantic training images; each field can be set in the `semantic:` block of the data YAML."""

    base: int = 0  # centre of the random long sides, in pixels; 0: --imgsz
    low: float = 0.75  # shortest and longest long side, as fractions of `base`
    high: float = 1.5
    std: float = 35.0  # standard deviation of the long sides, in steps of 32 pixels
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)  # brightness, contrast, saturation, hue
    crop: tuple[float, float] = (1.0, 1.0)  # width and height, as fractions of --imgsz
    flip: float = 0.5  # probability


@dataclass(frozen=True)
class SemanticSplitFiles:
    """Images and masks of a split, as a layout's `read` finds them."""

    images: Sequence[str]
    masks: Sequence[str]  # expected path for images without a mask
    tables: np.ndarray  # (k, 256) int16: class of each value, IGNORED_PIXEL or INVALID
    table_of: np.ndarray  # (n,) uint8: row in `tables` for each mask
    cache: Path  # preferred path of the scan cache
    notes: list[str] = field(default_factory=list)
    stamped: list[str] | None = None  # files whose sizes and times stand for those of all; None: the files themselves
    # reads the (H, W) uint8 values of an image by its row, raises ImageFault; None: the mask file has them
    read_values: Callable[[int], np.ndarray] | None = None


@dataclass(frozen=True)
class MaskRule:
    """How a layout maps image files to mask files.

    Attributes:
        folders: candidate mask folders for an image folder, best first.
        stems: candidate mask stems for an image stem, best first.
        image_folder: image folder for a path in the data YAML and the name of the split.
        is_image: tells images from other files by name.
        table_of: row of the value table by the stem of the mask.
        only_labelled: drop images without a mask instead of reporting them as faulty.
    """

    folders: Callable[[Path], list[Path]]
    stems: Callable[[str], tuple[str, ...]] = lambda stem: (stem,)
    image_folder: Callable[[Path, str], Path] = lambda path, split: path
    is_image: Callable[[str], bool] = lambda name: True
    table_of: Callable[[str], int] = lambda name: 0
    only_labelled: bool = False


@dataclass(frozen=True)
class Layout:
    """Entry of SEMANTIC_READERS.

    Attributes:
        read: lists the images and masks of a split.
        augment: default augmentation.
        options: keys of the `semantic:` block that the layout supports besides those of `SemanticAugment`.
    """

    read: Callable[[DataConfig, str], SemanticSplitFiles]
    augment: SemanticAugment = field(default_factory=SemanticAugment)
    options: tuple[str, ...] = ("ids", "ignore")

    def augment_for(self, data: DataConfig) -> SemanticAugment:
        """Combine the default augmentation with the options of the data YAML.

        Raises:
            UserError: an option is unsupported or out of range.
        """
        config = require_semantic(data)
        names = {known.name for known in fields(SemanticAugment)}
        if unused := sorted(config.options.keys() - names - set(self.options)):
            raise UserError(f"{data.source}: `semantic.{unused[0]}:` is not supported by the format {config.format}")
        own: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in config.options.items()
            if key in names
        }
        augment = replace(self.augment, **own)
        if augment.low > augment.high:
            raise UserError(f"{data.source}: `semantic.low: {augment.low}` exceeds `semantic.high: {augment.high}`")
        if augment.jitter[3] > _MAX_HUE:
            raise UserError(
                f"{data.source}: the hue in `semantic.jitter:` must be at most {_MAX_HUE}, got {augment.jitter[3]}"
            )
        return augment


def require_semantic(data: DataConfig) -> SemanticConfig:
    """Return the `semantic:` block of a data set.

    Raises:
        UserError: there is none.
    """
    if data.semantic is None:
        raise UserError(f"{data.source}: no `semantic:` block, so there are no semantic maps")
    return data.semantic


def default_table(config: SemanticConfig) -> np.ndarray:
    """Build the (256,) int16 table of a data set whose values are classes, or are mapped by `ids` and `ignore`."""
    table = np.full(256, INVALID, np.int16)
    ids = config.options.get("ids") or {number: number for number in range(len(config.names))}
    for value, number in ids.items():
        table[value] = number
    if IGNORED_PIXEL not in ids:
        table[IGNORED_PIXEL] = IGNORED_PIXEL
    table[config.options.get("ignore", [])] = IGNORED_PIXEL
    return table


def list_pairs(
    data: DataConfig, split: str, rule: MaskRule, tables: list[np.ndarray] | None = None
) -> SemanticSplitFiles:
    """List the images of a split and their masks.

    Args:
        data: data set with a `semantic:` block.
        split: `train`, `val` or `test`.
        rule: where the masks are.
        tables: value tables that `rule.table_of` selects from; None: `default_table`.

    Raises:
        UserError: there are no images, or no masks with `rule.only_labelled`.
    """
    config = require_semantic(data)
    root = config.root or data.root
    folders = [rule.image_folder(path, split) for path in data.semantic_split(split)]
    mask_folders = config.masks.get(split, ())
    if mask_folders and len(mask_folders) not in (1, len(folders)):
        raise UserError(
            f"{data.source}: `semantic.masks.{split}:` has {len(mask_folders)} folders for {len(folders)} image "
            "folders; give one, or one for each"
        )
    finder, pairs, notes = _MaskFinder(rule), [], []
    for number, folder in enumerate(folders):
        mask_folder = mask_folders[min(number, len(mask_folders) - 1)] if mask_folders else None
        found = sorted(path for path in find_images(folder, root) if rule.is_image(os.path.basename(path)))  # noqa: PTH119
        pairs += [(image, finder.find(image, mask_folder, folder)) for image in found]
    if not pairs:
        raise no_images_error(data, folders)
    repeated = Counter(image for image, _ in pairs)
    notes += [f"{image}: listed {count} times, used once" for image, count in repeated.items() if count > 1]
    pairs = list(dict(pairs).items())
    if rule.only_labelled:
        labelled = [(image, mask) for image, mask in pairs if finder.exists(mask)]
        if not labelled:
            raise UserError(f"{data.source}: none of {len(pairs)} images has a mask; looked for {pairs[0][1]}")
        if len(labelled) < len(pairs):
            notes.append(f"{data.source}: {len(pairs) - len(labelled)} of {len(pairs)} images without a mask dropped")
        pairs = labelled
    images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
    folder = Path(masks[0]).parent
    name = f"{folder.name}.{short_hash([split, *map(str, folders), *map(str, mask_folders)])}.semantic{CACHE_SUFFIX}"
    return SemanticSplitFiles(
        images=images,
        masks=masks,
        tables=np.stack(tables or [default_table(config)]),
        table_of=np.array([rule.table_of(Path(mask).stem) for mask in masks], np.uint8),
        cache=folder.with_name(name),
        notes=notes,
    )


class _MaskFinder:
    """Finds masks; every folder is listed once."""

    def __init__(self, rule: MaskRule) -> None:
        self.rule = rule
        self._folders: dict[str, Path] = {}
        self._names: dict[Path, set[str]] = {}

    def find(self, image: str, mask_folder: Path | None, image_folder: Path) -> str:
        """Find the mask of an image, below `mask_folder` or in a folder of the layout."""
        parent, name = os.path.split(image)
        if mask_folder is not None:
            below = os.path.relpath(parent, image_folder) if image_folder.is_dir() else "."
            folder = Path(os.path.normpath(mask_folder / below)) if not below.startswith("..") else mask_folder
        else:
            if parent not in self._folders:
                candidates = self.rule.folders(Path(parent))
                self._folders[parent] = next((path for path in candidates if path.is_dir()), candidates[0])
            folder = self._folders[parent]
        stems = self.rule.stems(os.path.splitext(name)[0])  # noqa: PTH122
        present = self._list(folder)
        candidates_names = (stem + suffix for stem in stems for suffix in MASK_SUFFIXES)
        found = next((mask for mask in candidates_names if mask in present), stems[0] + MASK_SUFFIXES[0])
        return os.path.join(folder, found)  # noqa: PTH118

    def exists(self, mask: str) -> bool:
        """Check whether a mask that `find` returned exists."""
        folder, name = os.path.split(mask)
        return name in self._list(Path(folder))

    def _list(self, folder: Path) -> set[str]:
        if folder not in self._names:
            self._names[folder] = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208
        return self._names[folder]


def replace_folder(folder: Path, pairs: Iterable[tuple[str, str]]) -> list[Path]:
    """Replace the last component `old` of a path by `new`, for each (old, new) whose `old` is a component."""
    found = []
    for old, new in pairs:
        parts = list(folder.parts)
        for position in range(len(parts) - 1, -1, -1):
            if parts[position] == old:
                found.append(Path(*parts[:position], *new.split("/"), *parts[position + 1 :]))
                break
    return found
