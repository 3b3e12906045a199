"""Check every image and label of a split once, and keep what was found beside the labels."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.distributed import main_first
from utils.core.errors import UserError
from utils.core.log import LOGGER, progress
from utils.datasets import READERS
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.label_index import Index, Listing
from utils.datasets.labels.scan_cache import Pool, cache_places, files_key, keep, load_kept
from utils.datasets.labels.yolo_lines import ImageLabels

FORMAT_VERSION = 2
MIN_SIDE_PX = 10  # smaller images teach nothing (behaviour.md 4.2)
MAX_FAULTY_SHARE = 0.01
_SHOWN = 10
_AT_A_TIME = 32  # images that a thread checks in a row
Found = tuple[tuple[int, int] | None, ImageLabels, str, list[str]]


def build_index(
    data: DataConfig,
    split: str,
    single_class: bool = False,
    allow_faults: bool = False,
    need_labels: bool = False,
) -> Index:
    """Return the index of a split, from its cache if nothing has changed.

    An image that cannot be read, or whose label file has a faulty line, is dropped and reported with file and line.
    So is a single object that cannot be one (a box without area in XML or JSON). UserError: no image is left;
    `need_labels` and there is no object at all; more than 1 % of the label files or of the objects are faulty and not
    `allow_faults`; a class that the data YAML does not name.
    """
    listing = READERS.get(data.format, data.source)(data, split)
    key = _key(listing)
    with main_first():
        places = cache_places(listing.cache)
        index, report = load_kept(places, key, _rebuilt)
        if index is None:
            index, report = _scan(listing, f"{split}: checking")
            if len(index):  # else there will be nothing to go on with
                keep(places, key, index.arrays(), report)
    _tell(index, report, split)
    _judge(index, report, listing, f"{data.source}: `{split}:`", allow_faults)
    if need_labels and len(index.boxes) == 0:
        raise UserError(
            f"{data.source}: no labels for any image of `{split}:`; looked for {listing.label_files[0]} and the like"
        )
    if single_class:
        boxes = index.boxes.copy()
        boxes[:, 0] = 0
        return replace(index, boxes=boxes)
    return _with_known_classes(index, data, listing, allow_faults)


# ----------------------------------------------------------------------------------------------------------------------
# Scanning


def _scan(listing: Listing, text: str) -> tuple[Index, list[str]]:
    """Return the index and the report: one line for each fault or oddity, label faults first."""
    paths: list[str] = []
    shapes: list[tuple[int, int]] = []
    labels: list[ImageLabels] = []
    label_faults: list[str] = []
    image_faults: list[str] = []
    notes: list[str] = []
    faulty_files = unlisted = 0
    notes += listing.prepare() if listing.prepare is not None else []
    with Pool(min(16, 4 * (os.cpu_count() or 1))) as pool:
        groups = pool.map(partial(_check_some, listing), range(0, len(listing.images), _AT_A_TIME))
        checked = (found for group in groups for found in group)
        for path, (shape, label, fault, odd) in zip(
            listing.images, progress(checked, len(listing.images), text, "image"), strict=True
        ):
            notes += odd
            unlisted += not label.listed
            if not label.listed:
                continue
            faulty_files += bool(label.faults)
            label_faults += label.faults
            image_faults += [fault] if fault else []
            if shape is None or fault or label.faults:
                continue
            if label.duplicates:
                notes.append(f"{path}: {label.duplicates} repeated label lines ignored")
            paths.append(path)
            shapes.append(shape)
            notes += label.lost
            labels.append(label)
    index = Index.build(paths, shapes, labels, corrupt=len(listing.images) - unlisted - len(paths))
    index.counts[Index.COUNTS.index("faulty_labels")] = faulty_files
    return index, label_faults + image_faults + notes


def _check_some(listing: Listing, start: int) -> list[Found]:
    return [_check(listing, i) for i in range(start, min(start + _AT_A_TIME, len(listing.images)))]


def _check(listing: Listing, i: int) -> Found:
    """Return the image's size (None if it cannot be used), its labels, what is wrong with it, and what is odd."""
    notes: list[str] = []
    label = listing.labels_of(i)
    if not label.listed:
        return None, label, "", []
    try:
        shape = probe_image(Path(listing.images[i]), notes)
    except ImageFault as error:
        return None, ImageLabels(), str(error), []  # whatever is wrong with its labels, too, is second to that
    if min(shape) < MIN_SIDE_PX:
        fault = f"{listing.images[i]}: {shape[1]} x {shape[0]} pixels, smaller than {MIN_SIDE_PX}"
        return None, ImageLabels(), fault, notes
    if label.size_hw is not None and not same_aspect(label.size_hw, shape):
        stated, found = (f"{width} x {height}" for height, width in (label.size_hw, shape))
        source = listing.label_files[i]
        fault = f"{source}: says that {listing.images[i]} has {stated} pixels, it has {found}; is it turned or cut?"
        label = ImageLabels(faults=[fault])
    return shape, label, "", notes


def same_aspect(first_hw: tuple[int, int], second_hw: tuple[int, int]) -> bool:
    """Tell whether one image may be the other, resized: the sides then agree to a pixel."""
    (height, width), (h, w) = first_hw, second_hw
    larger = max(first_hw + second_hw)
    return abs(height * w - width * h) <= larger


# ----------------------------------------------------------------------------------------------------------------------
# Judging


def _tell(index: Index, report: list[str], split: str) -> None:
    """Log what was found."""
    count = index.count
    text = [f"{split}: {len(index)} images, {len(index.boxes)} objects"]
    bare = count["missing"] + count["empty"]
    text += [f"{bare} without objects ({count['missing']} without a label file)"] if bare else []
    text += [f"{count['corrupt']} left out"] if count["corrupt"] else []
    text += [f"{count['lost']} objects left out"] if count["lost"] else []
    LOGGER.info(", ".join(text))
    for line in report[:_SHOWN]:
        LOGGER.warning(line)
    if len(report) > _SHOWN:
        LOGGER.warning(f"{split}: {len(report) - _SHOWN} more, all in the report beside the cache")


def _judge(index: Index, report: list[str], listing: Listing, what: str, allow_faults: bool) -> None:
    """Raise if what was found is not fit for use."""
    count = index.count
    faulty, files = count["faulty_labels"], count["faulty_labels"] + count["found"] + count["empty"]
    if faulty > MAX_FAULTY_SHARE * files and not allow_faults:
        raise UserError(
            f"{what} has {faulty} faulty label files among {files}, the first: {report[0]}; correct them or give "
            "--allow-label-faults to leave those images out"
        )
    lost = count["lost"]
    if lost > MAX_FAULTY_SHARE * (lost + len(index.boxes)) and not allow_faults:
        raise UserError(
            f"{what} has {lost} objects among {lost + len(index.boxes)} that cannot be used, see the report; correct "
            "them or give --allow-label-faults to go on without"
        )
    if len(index) == 0:
        first = report[0] if report else "not in the annotations"
        raise UserError(f"{what}: none of {len(listing.images)} images can be used, the first: {first}")


def _with_known_classes(index: Index, data: DataConfig, listing: Listing, allow_faults: bool) -> Index:
    """Return the index of images whose objects all have classes that the data YAML names.

    One that it does not name is a UserError, since YAML and labels do not belong together; with `allow_faults` the
    image is left out.
    """
    too_high = np.flatnonzero(index.boxes[:, 0] >= data.num_classes)
    if not len(too_high):
        return index
    images = np.unique(np.searchsorted(index.box_starts, too_high, side="right") - 1)
    files = dict(zip(listing.images, listing.label_files, strict=True))
    file, wrong = files[index.path(int(images[0]))], int(index.boxes[too_high[0], 0])
    fault = (
        f"{file}:{_line_of_class(file, wrong)}: class {wrong}, but {data.source} names "
        f"{data.num_classes} classes (0 to {data.num_classes - 1})"
    )
    if not allow_faults or len(images) == len(index):
        raise UserError(fault)
    LOGGER.warning(f"{fault}; {len(images)} image(s) with classes it does not name left out")
    return index.without({int(image) for image in images})


def _line_of_class(file: str, wrong: int) -> int:
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return 1
    return next((n for n, line in enumerate(lines, 1) if line.split()[:1] and float(line.split()[0]) == wrong), 1)


# ----------------------------------------------------------------------------------------------------------------------
# Cache


def _key(listing: Listing) -> str:
    label_files = list(dict.fromkeys(listing.label_files))  # of a COCO JSON there is one
    return files_key(f"polyolo index {FORMAT_VERSION}\n{listing.meaning}\n".encode(), listing.images, label_files)


def _rebuilt(arrays: dict[str, np.ndarray]) -> Index:
    index = Index(**arrays)
    _check_arrays(index)
    return index


def _check_arrays(index: Index) -> None:
    """Raise ValueError if the arrays do not belong together."""
    for starts, count, owners in (
        (index.path_starts, len(index.path_bytes), len(index)),
        (index.box_starts, len(index.boxes), len(index)),
        (index.point_starts, len(index.points), len(index.boxes)),
    ):
        if len(starts) != owners + 1 or starts[0] != 0 or starts[-1] != count or (np.diff(starts) < 0).any():
            raise ValueError("arrays do not fit together")
    if index.boxes.shape[1:] != (5,) or index.points.shape[1:] != (2,) or len(index.counts) != len(Index.COUNTS):
        raise ValueError("arrays do not have the right shape")
