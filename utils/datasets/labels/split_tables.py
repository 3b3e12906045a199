"""Labels of all images of a split in one file: what the readers of such files share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.annotation_objects import ClassNumbers, FileObjects, to_labels
from utils.datasets.labels.annotation_paths import class_names, meaning_of
from utils.datasets.labels.label_index import CACHE_SUFFIX, Listing
from utils.datasets.labels.yolo_lines import ImageLabels

Table = dict[str, FileObjects]  # by the name of the image's file


def table_listing(data: DataConfig, images: list[str], source: Path, read: Callable[[], Table], form: str) -> Listing:
    """Return the listing of images whose labels are all in `source`; `read` is called only if there is no index yet.

    Images that the file does not name are of no split.
    """
    key = hashlib.sha256("\n".join(images).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    classes = ClassNumbers(class_names(data))
    table: Table = {}

    def prepare() -> list[str]:
        table.update(read())
        named = {Path(image).name for image in images}
        missing = [name for name in table if name not in named]
        if len(missing) == len(table):
            raise UserError(f"{source}: none of its {len(table)} images, such as {next(iter(table), '')}, is there")
        return (
            [f"{source}: {len(missing)} of its {len(table)} images not found, such as {missing[0]}"] if missing else []
        )

    def labels(i: int) -> ImageLabels:
        found = table.get(Path(images[i]).name)
        if found is None:
            return ImageLabels(listed=False)
        try:
            size_hw = found.size_hw or probe_image(Path(images[i]))
        except ImageFault:  # is reported as such
            return ImageLabels()
        return to_labels(found, size_hw, classes, str(source))

    cache = source.with_name(f"{source.stem}.{key}{CACHE_SUFFIX}")
    return Listing(images, [str(source)] * len(images), labels, cache, prepare, meaning_of(data, form))
