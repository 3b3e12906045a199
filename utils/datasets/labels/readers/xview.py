"""xView format: one GeoJSON file of boxes for all images, in a folder above them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import READERS
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject
from utils.datasets.labels.annotation_paths import label_class_names, split_images
from utils.datasets.labels.annotation_splits import Table, split_of_table
from utils.datasets.labels.json_stream import stream_json
from utils.datasets.labels.label_index import SplitFiles

_FILE = "xView_train.geojson"
TYPES = (
    11, 12, 13, 15, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 32, 33, 34, 35, 36, 37, 38, 40, 41, 42, 44, 45, 47,
    49, 50, 51, 52, 53, 54, 55, 56, 57, 59, 60, 61, 62, 63, 64, 65, 66, 71, 72, 73, 74, 76, 77, 79, 83, 84, 86, 89, 91,
    93, 94,
)  # fmt: skip


@READERS.register("xview")
def read_xview(data: DataConfig, split: str) -> SplitFiles:
    """List the images of a split; objects of other types than `TYPES` are dropped."""
    names = label_class_names(data)
    if len(names) != len(TYPES):
        raise UserError(f"{data.source}: xView has {len(TYPES)} classes, `names` has {len(names)}")
    images = split_images(data, split)
    candidates = [folder / _FILE for folder in Path(images[0]).parents]
    source = next((path for path in candidates if path.is_file()), None)
    if source is None:
        raise UserError(f"{data.source}: no {_FILE} beside or above {Path(images[0]).parent}")
    return split_of_table(data, images, source, partial(_read, source, names), "xview")


def _read(path: Path, names: tuple[str, ...]) -> Table:
    number_of = {kind: number for number, kind in enumerate(TYPES)}
    found: Table = {}
    for count, (_, feature) in enumerate(stream_json(path, ("features",), lambda read: None), 1):
        about = feature.get("properties") if isinstance(feature, dict) else None
        where = f"feature {count}"
        try:
            image, kind = str(about["image_id"]), int(about["type_id"])  # type: ignore[index]
            box = np.array([float(side) for side in about["bounds_imcoords"].split(",")], np.float64)  # type: ignore[index]
            if box.shape != (4,):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: {where}: needs image_id, type_id and four numbers in bounds_imcoords") from error
        objects = found.setdefault(image, FileObjects(image=image)).objects
        if kind in number_of:
            objects.append(LabelledObject(names[number_of[kind]], box, where=where))
    if not found:
        raise UserError(f"{path}: no features")
    return found
