"""Scan of images with boxes, polygons or one class each: builds the `Index` of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.datasets import READERS
from utils.datasets.file_access import read_binary
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.label_index import Index, SplitFiles
from utils.datasets.labels.scan import (
    MAX_FAULT_FRACTION,
    MIN_SIDE_PX,
    CheckedImage,
    SplitScan,
    check_image,
    log_summary,
    require_few_faults,
    require_images,
)
from utils.datasets.labels.scan_cache import files_key
from utils.datasets.labels.yolo_lines import MAX_BYTES, MAX_OBJECTS, ImageLabels, too_many_objects

_TABLES = ("shapes_hw", "boxes", "points")
_FLOATS = ("boxes", "points")  # in the cache; the other arrays are integers
FORMAT_VERSION = 2  # of the cache; a change rebuilds all caches
_MAX_COORDINATE = 1.001  # rounding of normalised coordinates
_IMAGES_PER_TASK = 32  # label files are so small that a task per image would cost more than reading it


def build_index(
    data: DataConfig,
    split: str,
    single_class: bool = False,
    allow_faults: bool = False,
    need_labels: bool = False,
) -> Index:
    """Build the index of a split, or load it from its cache if no file has changed.

    Unreadable images and images whose label file has a faulty line are dropped and reported with file and line.
    Single invalid objects (such as boxes without area in XML or JSON) are dropped as well.

    Args:
        data: data set.
        split: `train`, `val` or `test`.
        single_class: replace all classes by class 0.
        allow_faults: accept any number of faulty label files, objects and unknown classes.
        need_labels: require at least one object.

    Returns:
        The usable images with their labels.

    Raises:
        UserError: no image is usable; there is no object and `need_labels`; without `allow_faults`, more than 1 % of
            the label files or of the objects are faulty or a class is not in the data YAML.
    """
    files = READERS.get(data.format, data.source)(data, split)
    index, report = _scan(files, split).run()
    _log_index(index, report, split)
    _validate(index, report, files, f"{data.source}: `{split}:`", allow_faults)
    if need_labels and len(index.boxes) == 0:
        raise UserError(
            f"{data.source}: no labels for any image of `{split}:`; looked for {files.label_files[0]} and the like"
        )
    if single_class:
        boxes = index.boxes.copy()
        boxes[:, 0] = 0
        return replace(index, boxes=boxes)
    return _with_known_classes(index, data, files, allow_faults)


def is_same_aspect(first_hw: tuple[int, int], second_hw: tuple[int, int]) -> bool:
    """Check whether one size is the other one resized, with sides rounded to a pixel."""
    (height, width), (h, w) = first_hw, second_hw
    return abs(height * w - width * h) <= max(first_hw + second_hw)


def _scan(files: SplitFiles, split: str) -> SplitScan[ImageLabels, Index]:
    def check(image: int) -> CheckedImage[ImageLabels]:
        return _check(files, image)

    def collect(checked: Iterator[CheckedImage[ImageLabels]]) -> Index:
        paths, shapes, labels = [], [], []
        in_split = faulty = 0
        for path, one in zip(files.images, checked, strict=True):
            in_split += one.in_split
            faulty += bool(one.label_faults)
            if one.labels is not None and one.shape_hw is not None:
                paths.append(path)
                shapes.append(one.shape_hw)
                labels.append(one.labels)
        index = Index.build(paths, shapes, labels, corrupt=in_split - len(paths))
        index.counts[Index.COUNTS.index("faulty_labels")] = faulty
        return index

    stamped = files.stamped
    if stamped is None:
        stamped = [*files.images, *dict.fromkeys(files.label_files)]  # a COCO JSON is the label file of every image
    header = f"polyolo index {FORMAT_VERSION}\n{files.fingerprint}\n".encode()
    return SplitScan(
        num_images=len(files.images),
        check=check,
        collect=collect,
        restore=_restored,
        cache=files.cache,
        key=files_key(header, stamped),
        text=f"{split}: checking",
        prepare=files.prepare,
        images_per_task=_IMAGES_PER_TASK,
    )


def _check(files: SplitFiles, image: int) -> CheckedImage[ImageLabels]:
    labels, path = files.load_labels(image), files.images[image]
    notes: list[str] = []
    if not labels.listed:
        return CheckedImage(in_split=False)
    try:
        shape_hw = check_image(path, notes)
    except ImageFault as error:  # label faults of an unreadable image do not matter
        return CheckedImage(image_fault=str(error), notes=notes)
    if labels.size_hw is not None and not is_same_aspect(labels.size_hw, shape_hw):
        stated, found = (f"{width} x {height}" for height, width in (labels.size_hw, shape_hw))
        fault = f"{files.label_files[image]}: size of {path} is {stated} pixels in the labels but {found} in the file"
        return CheckedImage(label_faults=[f"{fault}; was it rotated or cropped?"], notes=notes)
    if labels.faults:
        return CheckedImage(label_faults=labels.faults, notes=notes)
    if len(labels.boxes) > MAX_OBJECTS:
        fault = f"{files.label_files[image] or path}: {too_many_objects(len(labels.boxes))}"
        return CheckedImage(label_faults=[fault], notes=notes)
    if labels.duplicates:
        notes.append(f"{path}: {labels.duplicates} duplicate label lines ignored")
    return CheckedImage(labels, shape_hw, notes=notes + labels.lost)


def _log_index(index: Index, report: list[str], split: str) -> None:
    count = index.count
    text = [f"{split}: {len(index)} images, {len(index.boxes)} objects"]
    background = count["missing"] + count["empty"]
    text += [f"{background} without objects ({count['missing']} without a label file)"] if background else []
    text += [f"{count['corrupt']} images dropped"] if count["corrupt"] else []
    text += [f"{count['lost']} objects dropped"] if count["lost"] else []
    log_summary(", ".join(text), report, split)


def _validate(index: Index, report: list[str], files: SplitFiles, source: str, allow_faults: bool) -> None:
    count = index.count
    faulty, lost = count["faulty_labels"], count["lost"]
    first = report[0] if report else "not in the annotations"
    if not allow_faults:
        require_few_faults(faulty, faulty + count["found"] + count["empty"], "label files", first, source)
        if lost > MAX_FAULT_FRACTION * (lost + len(index.boxes)):
            raise UserError(
                f"{source} has {lost} invalid objects among {lost + len(index.boxes)}, see the report; correct them "
                "or pass --allow-label-faults to skip them"
            )
    require_images(len(index), len(files.images), first, source)


def _with_known_classes(index: Index, data: DataConfig, files: SplitFiles, allow_faults: bool) -> Index:
    """Reject classes that the data YAML does not name or, with `allow_faults`, drop the images that have them."""
    too_high = np.flatnonzero(index.boxes[:, 0] >= data.num_classes)
    if not len(too_high):
        return index
    images = np.unique(np.searchsorted(index.box_starts, too_high, side="right") - 1)
    label_files = dict(zip(files.images, files.label_files, strict=True))
    file, wrong = label_files[index.path(int(images[0]))], int(index.boxes[too_high[0], 0])
    fault = (
        f"{file}:{_line_of_class(file, wrong)}: class {wrong}, but {data.source} names "
        f"{data.num_classes} classes (0 to {data.num_classes - 1})"
    )
    if not allow_faults or len(images) == len(index):
        raise UserError(fault)
    LOGGER.warning(f"{fault}; {len(images)} image(s) with unknown classes dropped")
    return index.without({int(image) for image in images})


def _line_of_class(file: str, wrong: int) -> int:
    try:
        lines = read_binary(file, MAX_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return 1
    return next((n for n, line in enumerate(lines, 1) if line.split()[:1] and float(line.split()[0]) == wrong), 1)


def _restored(arrays: dict[str, np.ndarray]) -> Index:
    """Rebuild the index from cached arrays; raises ValueError if they are inconsistent."""
    index = Index(**arrays)
    for name, array in arrays.items():
        if array.dtype.kind not in ("f" if name in _FLOATS else "iu") or array.ndim != 1 + (name in _TABLES):
            raise ValueError(f"wrong type of {name}")
    for starts, count, owners in (
        (index.path_starts, len(index.path_bytes), len(index)),
        (index.box_starts, len(index.boxes), len(index)),
        (index.point_starts, len(index.points), len(index.boxes)),
    ):
        if len(starts) != owners + 1 or starts[0] != 0 or starts[-1] != count or (np.diff(starts) < 0).any():
            raise ValueError("inconsistent array lengths")
    if index.boxes.shape[1:] != (5,) or index.points.shape[1:] != (2,) or len(index.counts) != len(Index.COUNTS):
        raise ValueError("wrong array shapes")
    if index.shapes_hw.shape != (len(index), 2) or (index.shapes_hw < MIN_SIDE_PX).any() or (index.counts < 0).any():
        raise ValueError("wrong image sizes or counts")
    whole = np.floor(index.boxes[:, 0]) == index.boxes[:, 0]
    if not (whole & (index.boxes >= 0).all(1) & (index.boxes[:, 1:] <= _MAX_COORDINATE).all(1)).all():
        raise ValueError("a box that is not within its image")
    if not np.isfinite(index.points).all():
        raise ValueError("a point that is not finite")
    return index
