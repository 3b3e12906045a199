"""Scan of images with semantic maps: validates every mask and counts the pixels of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.scan import (
    MIN_SIDE_PX,
    CheckedImage,
    SplitScan,
    check_image,
    log_summary,
    require_few_faults,
    require_images,
)
from utils.datasets.labels.scan_cache import files_key
from utils.datasets.labels.semantic_layout import INVALID, SemanticSplitFiles, require_semantic
from utils.datasets.labels.semantic_mask_files import count_values, map_classes, read_values
from utils.datasets.labels.yolo_lines import ImageLabels

FORMAT_VERSION = 1  # of the cache; a change rebuilds all caches


@dataclass(frozen=True)
class SemanticIndex:
    """Images with one mask each, in flat arrays that forked workers share; `images` has no boxes."""

    images: Index
    masks: Index  # paths of the masks, with the lengths and sizes of `images`
    tables: np.ndarray  # (k, 256) int16, see `SemanticSplitFiles`
    table_of: np.ndarray  # (n,) uint8
    rows: np.ndarray  # (n,) int64, of the images in `files`
    files: SemanticSplitFiles
    pixel_counts: np.ndarray  # (C,) int64 pixels of each class
    image_counts: np.ndarray  # (C,) int64 images that show each class

    def __len__(self) -> int:
        return len(self.images)

    def read_map(self, image: int) -> tuple[np.ndarray, str]:
        """Read a semantic map at the size of its image.

        Args:
            image: row of the index.

        Returns:
            The (H, W) uint8 classes and the fault of the mask file, "" if there is none. A map that became unreadable
            or changed its size since the scan is all `IGNORED_PIXEL`.
        """
        path = self.masks.path(image)
        height, width = (int(side) for side in self.images.shapes_hw[image])
        try:
            values = values_of(self.files, int(self.rows[image]))
            if values.shape != (height, width):
                raise ImageFault(f"{path}: no longer {width} x {height} pixels")
        except ImageFault as fault:
            return np.full((height, width), IGNORED_PIXEL, np.uint8), str(fault)
        return map_classes(values, self.tables[self.table_of[image]]), ""


def build_semantic_index(data: DataConfig, split: str, allow_faults: bool = False) -> SemanticIndex:
    """Build the index of images with semantic maps, or load it from its cache if no file has changed.

    Images are dropped and reported if they or their mask are unreadable, if the sizes differ, or if the mask is a
    colour or 16-bit image or has a value that is not a class.

    Args:
        data: data set with a `semantic:` block.
        split: `train`, `val` or `test`.
        allow_faults: accept any number of faulty masks.

    Returns:
        The usable images.

    Raises:
        UserError: no image is usable or, without `allow_faults`, more than 1 % of the masks are faulty.
    """
    config = require_semantic(data)
    files = SEMANTIC_READERS.get(config.format, data.source).read(data, split)
    found, report = _scan(files, len(config.names), split).run()
    report = [*files.notes, *report]
    absent = int((found.image_counts == 0).sum())
    text = f"{split}: {len(found)} images with semantic maps"
    text += f", {absent} of {len(found.image_counts)} classes absent" if absent and len(found) else ""
    log_summary(text, report, split)
    source, count = f"{data.source}: `semantic.{split}:`", len(files.images)
    first = next((line for line in report[len(files.notes) :]), "")
    if not allow_faults:
        require_few_faults(int(found.faulty_masks), count, "masks", first, source)
    require_images(len(found), count, first, source)
    return SemanticIndex(
        images=_index_of(files.images, found),
        masks=_index_of(files.masks, found),
        tables=files.tables,
        table_of=files.table_of[found.rows],
        rows=found.rows,
        files=files,
        pixel_counts=found.pixel_counts,
        image_counts=found.image_counts,
    )


def values_of(files: SemanticSplitFiles, row: int) -> np.ndarray:
    """Read the (H, W) uint8 values of the mask of an image.

    Raises:
        ImageFault: the mask is unusable.
    """
    return read_values(Path(files.masks[row])) if files.read_values is None else files.read_values(row)


def find_value_fault(values: np.ndarray, table: np.ndarray, num_classes: int) -> str:
    """Find values of a mask that are neither a class nor ignored.

    Args:
        values: (H, W) uint8 values as stored.
        table: (256,) class of each value, see `SemanticSplitFiles`.
        num_classes: number of classes, for the message.

    Returns:
        The fault with the position of its first pixel, "" if there is none.
    """
    invalid = np.flatnonzero((count_values(values) > 0) & (table == INVALID))
    if not len(invalid):
        return ""
    y, x = (int(axis[0]) for axis in np.nonzero(values == invalid[0]))
    others = f" (and {', '.join(map(str, invalid[1:6]))})" if len(invalid) > 1 else ""
    return (
        f"value {invalid[0]}{others} at x {x}, y {y} is not a class; expected 0 to {num_classes - 1} "
        f"({num_classes} classes) or {IGNORED_PIXEL} (unlabelled)"
    )


@dataclass(frozen=True)
class _Found:
    """Scan result: the usable rows of the split's files and their contents."""

    rows: np.ndarray  # (n,) int64
    shapes_hw: np.ndarray  # (n, 2) int32
    pixel_counts: np.ndarray  # (C,) int64
    image_counts: np.ndarray  # (C,) int64
    faulty_masks: np.ndarray  # () int64

    def __len__(self) -> int:
        return len(self.rows)

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _scan(files: SemanticSplitFiles, num_classes: int, split: str) -> SplitScan[np.ndarray, _Found]:
    def check(image: int) -> CheckedImage[np.ndarray]:
        return _check(files, image, num_classes)

    def collect(checked: Iterator[CheckedImage[np.ndarray]]) -> _Found:
        rows, shapes, faulty = [], [], 0
        pixel_counts, image_counts = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        for row, one in enumerate(checked):
            faulty += bool(one.label_faults)
            if one.labels is not None and one.shape_hw is not None:
                rows.append(row)
                shapes.append(one.shape_hw)
                pixel_counts += one.labels
                image_counts += one.labels > 0
        shapes_hw = np.array(shapes, np.int32).reshape(-1, 2)
        return _Found(np.array(rows, np.int64), shapes_hw, pixel_counts, image_counts, np.array(faulty, np.int64))

    header = f"polyolo masks {FORMAT_VERSION} {num_classes}\n".encode()
    header += files.tables.tobytes() + files.table_of.tobytes()
    return SplitScan(
        num_images=len(files.images),
        check=check,
        collect=collect,
        restore=lambda arrays: _restored(arrays, len(files.images), num_classes),
        cache=files.cache,
        key=files_key(header, [*files.images, *files.masks] if files.stamped is None else files.stamped),
        text=f"{split}: checking masks",
    )


def _check(files: SemanticSplitFiles, row: int, num_classes: int) -> CheckedImage[np.ndarray]:
    """Check one image; its labels are the (C,) pixel counts of its classes."""
    notes: list[str] = []
    image, mask, table = files.images[row], files.masks[row], files.tables[files.table_of[row]]
    try:
        shape_hw = check_image(image, notes)
    except ImageFault as error:
        return CheckedImage(image_fault=str(error))
    try:
        values = values_of(files, row)
    except ImageFault as error:
        return CheckedImage(label_faults=[str(error)], notes=notes)
    fault = find_value_fault(values, table, num_classes)
    if values.shape != shape_hw:
        fault = f"{values.shape[1]} x {values.shape[0]} pixels, its image {image} {shape_hw[1]} x {shape_hw[0]}"
    if fault:
        return CheckedImage(label_faults=[f"{mask}: {fault}"], notes=notes)
    by_value, counts = count_values(values), np.zeros(num_classes, np.int64)
    labelled = (by_value > 0) & (table != IGNORED_PIXEL)
    np.add.at(counts, table[labelled], by_value[labelled])
    return CheckedImage(counts, shape_hw, notes=notes)


def _restored(arrays: dict[str, np.ndarray], num_images: int, num_classes: int) -> _Found:
    """Rebuild the result from cached arrays; raises ValueError if they are inconsistent."""
    found = _Found(**arrays)
    if found.rows.ndim != 1 or found.shapes_hw.shape != (len(found), 2) or found.faulty_masks.shape != ():
        raise ValueError("wrong array shapes")
    if any(array.dtype.kind != "i" for array in arrays.values()):
        raise ValueError("arrays that are not integers")
    counts = (found.pixel_counts, found.image_counts)
    if any(count.shape != (num_classes,) or (count < 0).any() for count in counts):
        raise ValueError("wrong counts of classes")
    in_order = (np.diff(found.rows, prepend=-1) > 0).all() and (found.rows < num_images).all()
    if not in_order or (found.shapes_hw < MIN_SIDE_PX).any():
        raise ValueError("wrong rows or image sizes")
    return found


def _index_of(paths: Sequence[str], found: _Found) -> Index:
    shapes = [(int(height), int(width)) for height, width in found.shapes_hw]
    return Index.build([paths[row] for row in found.rows], shapes, [ImageLabels() for _ in shapes], corrupt=0)
