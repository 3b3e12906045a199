"""SKU-110K format: one CSV table per split with `image,x1,y1,x2,y2,class,width,height`, a single class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.log import progress
from utils.datasets import READERS
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject
from utils.datasets.labels.annotation_paths import label_class_names
from utils.datasets.labels.annotation_splits import Table, split_of_table
from utils.datasets.labels.label_index import SplitFiles

_FIELDS = 8


@READERS.register("sku110k")
def read_sku110k(data: DataConfig, split: str) -> SplitFiles:
    """List the images in the table of a split; their files are in the folder `images` of the data set."""
    sources = data.split(split)
    if len(sources) != 1 or not sources[0].is_file():
        raise UserError(f"{data.source}: `{split}:` must be one CSV file, such as annotations/annotations_{split}.csv")
    table = _read(sources[0], label_class_names(data))
    images = [str(data.root / "images" / name) for name in sorted(table)]
    return split_of_table(data, images, sources[0], lambda: table, "sku110k")


def _read(path: Path, names: tuple[str, ...]) -> Table:
    found: Table = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(progress(csv.reader(file), text=f"reading {path.name}", unit="row"), 1):
                if not row:
                    continue
                try:
                    image, (x1, y1, x2, y2), (width, height) = row[0], map(float, row[1:5]), map(int, row[6:8])
                    if len(row) != _FIELDS or not image or Path(image).name != image:
                        raise ValueError
                except ValueError:
                    raise UserError(f"{path}:{number}: expected image,x1,y1,x2,y2,class,width,height") from None
                about = found.setdefault(image, FileObjects(size_hw=(height, width), image=image))
                where = f"line {number}"
                about.objects.append(LabelledObject(names[0], np.array([x1, y1, x2, y2], np.float64), where=where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not found:
        raise UserError(f"{path}: empty table")
    return found
