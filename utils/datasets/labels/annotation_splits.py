"""Splits of annotation formats that name their classes: one file per image, or one table for all images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.annotation_objects import ClassNumbers, FileObjects, to_labels
from utils.datasets.labels.annotation_paths import annotation_files, cache_path, fingerprint_of, label_class_names
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.yolo_lines import ImageLabels

Table = dict[str, FileObjects]  # by image file name


def split_of_files(
    data: DataConfig, split: str, images: list[str], form: tuple[str, str], read: Callable[[Path], FileObjects]
) -> SplitFiles:
    """Describe a split with one annotation file per image.

    Args:
        data: data set.
        split: `train`, `val` or `test`.
        images: image files.
        form: format name, which is part of the cache key, and suffix of the annotation files.
        read: reads one annotation file, which may not exist.
    """
    name, suffix = form
    files = annotation_files(images, suffix)
    classes = ClassNumbers(label_class_names(data))

    def load_labels(image: int) -> ImageLabels:
        return _labels(read(Path(files[image])), images[image], classes, files[image])

    cache = cache_path(Path(files[0]).parent, data, split)
    return SplitFiles(images, files, load_labels, cache, fingerprint=fingerprint_of(data, name))


def split_of_table(
    data: DataConfig, images: list[str], source: Path, read: Callable[[], Table], name: str
) -> SplitFiles:
    """Describe a split whose labels are all in one file; images that the file does not list are not in the split.

    Args:
        data: data set.
        images: image files.
        source: the annotation file.
        read: reads `source`; called only without a valid scan cache.
        name: format name, part of the cache key.
    """
    classes = ClassNumbers(label_class_names(data))
    table: Table = {}

    def prepare() -> list[str]:
        table.update(read())
        names = {Path(image).name for image in images}
        missing = [name for name in table if name not in names]
        if len(missing) == len(table):
            raise UserError(f"{source}: none of its {len(table)} images found, such as {next(iter(table), '')}")
        summary = f"{source}: {len(missing)} of its {len(table)} images not found, such as {(missing or [''])[0]}"
        return [summary] if missing else []

    def load_labels(image: int) -> ImageLabels:
        found = table.get(Path(images[image]).name)
        return ImageLabels(listed=False) if found is None else _labels(found, images[image], classes, str(source))

    cache = source.with_name(f"{source.stem}.{short_hash(images)}{CACHE_SUFFIX}")
    fingerprint = fingerprint_of(data, name)
    return SplitFiles(images, [str(source)] * len(images), load_labels, cache, prepare, fingerprint)


def _labels(found: FileObjects, image: str, classes: ClassNumbers, source: str) -> ImageLabels:
    try:
        size_hw = found.size_hw or probe_image(Path(image))
    except ImageFault:  # the scan reports the image itself
        return ImageLabels()
    return to_labels(found, size_hw, classes, source)
