"""Check every image and mask of a split once, count the pixels of each class, and keep what was found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig
from utils.core.distributed import main_first
from utils.core.errors import UserError
from utils.core.log import LOGGER, progress
from utils.datasets import SEMANTIC_READERS
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.scan import MAX_FAULTY_SHARE, MIN_SIDE_PX
from utils.datasets.labels.scan_cache import Pool, cache_places, files_key, keep, load_kept
from utils.datasets.labels.semantic_layout import OUTSIDE, SemanticListing, semantic_of
from utils.datasets.labels.semantic_mask_files import count_values, read_values
from utils.datasets.labels.yolo_lines import ImageLabels

FORMAT_VERSION = 1
_SHOWN = 10


@dataclass(frozen=True)
class SemanticIndex:
    """Images with a mask each, in flat arrays that forked workers share. `images` knows no boxes."""

    images: Index
    masks: Index  # of the same length and sizes: the paths of the masks
    tables: np.ndarray  # (k, 256) int16, see SemanticListing
    table_of: np.ndarray  # (n,) uint8
    pixel_counts: np.ndarray  # (C,) int64 pixels of each class
    image_counts: np.ndarray  # (C,) int64 images that show it

    def __len__(self) -> int:
        return len(self.images)


def build_semantic_index(data: DataConfig, split: str, allow_faults: bool = False) -> SemanticIndex:
    """Return the images of a split that have a class per pixel, from the cache if nothing has changed.

    An image is left out and reported by name if it or its mask cannot be read, if their sizes differ, or if the mask
    is in colour, has 16 bits or holds a value that is no class. UserError: no image is left, or more than 1 % of the
    masks are faulty and not `allow_faults`.
    """
    config = semantic_of(data)
    listing: SemanticListing = SEMANTIC_READERS.get(config.format, data.source).read(data, split)
    head = f"polyolo masks {FORMAT_VERSION} {len(config.names)}\n".encode() + listing.tables.tobytes()
    key = files_key(head + listing.table_of.tobytes(), listing.images, listing.masks)
    with main_first():
        places = cache_places(listing.cache)
        found, report = load_kept(places, key, _rebuilt)
        if found is None:
            found, report = _scan(listing, len(config.names), f"{split}: checking masks")
            if len(found):
                keep(places, key, found.arrays(), report)
    report = [*listing.notes, *report]
    _tell(found, report, split)
    _judge(found, report, len(listing.images), f"{data.source}: `semantic.{split}:`", allow_faults)
    rows = found.rows
    return SemanticIndex(
        images=_paths([listing.images[row] for row in rows], found.shapes_hw),
        masks=_paths([listing.masks[row] for row in rows], found.shapes_hw),
        tables=listing.tables,
        table_of=listing.table_of[rows],
        pixel_counts=found.pixel_counts,
        image_counts=found.image_counts,
    )


@dataclass(frozen=True)
class _Found:
    """What a scan found: which rows of the listing can be used, and what they hold."""

    rows: np.ndarray  # (n,) int64
    shapes_hw: np.ndarray  # (n, 2) int32
    pixel_counts: np.ndarray  # (C,)
    image_counts: np.ndarray  # (C,)
    faulty_masks: np.ndarray  # () int64

    def __len__(self) -> int:
        return len(self.rows)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _rebuilt(arrays: dict[str, np.ndarray]) -> _Found:
    found = _Found(**arrays)
    if found.rows.ndim != 1 or found.shapes_hw.shape != (len(found), 2) or found.faulty_masks.shape != ():
        raise ValueError("arrays do not have the right shape")
    return found


def _paths(paths: list[str], shapes_hw: np.ndarray) -> Index:
    shapes = [(int(height), int(width)) for height, width in shapes_hw]
    return Index.build(paths, shapes, [ImageLabels() for _ in paths], corrupt=0)


# ----------------------------------------------------------------------------------------------------------------------
# Scanning


@dataclass
class _Checked:
    """What was found out about one image: a fault of the image, one of the mask, or the pixels of each class."""

    shape_hw: tuple[int, int] = (0, 0)
    counts: np.ndarray | None = None
    image_fault: str = ""
    mask_fault: str = ""
    notes: tuple[str, ...] = ()


def _scan(listing: SemanticListing, num_classes: int, text: str) -> tuple[_Found, list[str]]:
    rows, shapes, mask_faults, image_faults, notes = [], [], [], [], []
    pixels, images = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    count = len(listing.images)
    with Pool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        checked = pool.map(lambda row: _check(listing, row, num_classes), range(count))
        for row, result in enumerate(progress(checked, count, text, "image")):
            notes += result.notes
            mask_faults += [result.mask_fault] if result.mask_fault else []
            image_faults += [result.image_fault] if result.image_fault else []
            if result.counts is not None:
                rows.append(row)
                shapes.append(result.shape_hw)
                pixels += result.counts
                images += result.counts > 0
    found = _Found(
        rows=np.array(rows, np.int64),
        shapes_hw=np.array(shapes, np.int32).reshape(-1, 2),
        pixel_counts=pixels,
        image_counts=images,
        faulty_masks=np.array(len(mask_faults), np.int64),
    )
    return found, mask_faults + image_faults + notes


def _check(listing: SemanticListing, row: int, num_classes: int) -> _Checked:
    notes: list[str] = []
    image, mask = listing.images[row], listing.masks[row]
    try:
        shape_hw = probe_image(Path(image), notes)
    except ImageFault as error:
        return _Checked(image_fault=str(error))
    if min(shape_hw) < MIN_SIDE_PX:
        return _Checked(image_fault=f"{image}: {shape_hw[1]} x {shape_hw[0]} pixels, smaller than {MIN_SIDE_PX}")
    try:
        values = read_values(Path(mask))
    except ImageFault as error:
        return _Checked(mask_fault=str(error), notes=tuple(notes))
    fault = value_fault(values, listing.tables[listing.table_of[row]], num_classes)
    if values.shape != shape_hw:
        fault = f"{values.shape[1]} x {values.shape[0]} pixels, its image {image} {shape_hw[1]} x {shape_hw[0]}"
    if fault:
        return _Checked(mask_fault=f"{mask}: {fault}", notes=tuple(notes))
    by_value, table = count_values(values), listing.tables[listing.table_of[row]]
    counts = np.zeros(num_classes, np.int64)
    labelled = (by_value > 0) & (table != IGNORED_PIXEL)
    np.add.at(counts, table[labelled], by_value[labelled])
    return _Checked(shape_hw, counts, notes=tuple(notes))


def value_fault(values: np.ndarray, table: np.ndarray, num_classes: int) -> str:
    """Return what is wrong with the values of a mask, "" if nothing is."""
    outside = np.flatnonzero((count_values(values) > 0) & (table == OUTSIDE))
    if not len(outside):
        return ""
    y, x = (int(place[0]) for place in np.nonzero(values == outside[0]))
    others = f" (and {', '.join(map(str, outside[1:6]))})" if len(outside) > 1 else ""
    return (
        f"value {outside[0]}{others} at x {x}, y {y} is no class; {num_classes} are named (0 to {num_classes - 1}), "
        f"{IGNORED_PIXEL} is no label"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Judging


def _tell(found: _Found, report: list[str], split: str) -> None:
    absent = int((found.image_counts == 0).sum())
    text = f"{split}: {len(found)} images with a class per pixel"
    LOGGER.info(text + (f", {absent} of {len(found.image_counts)} classes nowhere" if absent and len(found) else ""))
    for line in report[:_SHOWN]:
        LOGGER.warning(line)
    if len(report) > _SHOWN:
        LOGGER.warning(f"{split}: {len(report) - _SHOWN} more, all in the report beside the cache")


def _judge(found: _Found, report: list[str], count: int, what: str, allow_faults: bool) -> None:
    faulty = int(found.faulty_masks)
    first = next((line for line in report if "listed" not in line and "left out" not in line), "")
    if faulty > MAX_FAULTY_SHARE * count and not allow_faults:
        raise UserError(
            f"{what} has {faulty} faulty masks among {count}, the first: {first}; correct them or give "
            "--allow-label-faults to leave those images out"
        )
    if len(found) == 0:
        raise UserError(f"{what}: none of {count} images can be used, the first: {first}")
