"""Reader of tables with one box per line: CSV with a header (TensorFlow, Roboflow), or Udacity's without one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import LabelSource, images_below, read_class_names
from utils.core.errors import UserError
from utils.core.yaml_file import read_text
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject
from utils.datasets.labels.annotation_paths import find_images

_COLUMNS = {  # accepted column names, in lower case
    "image": ("filename", "image", "frame", "image_id", "path", "file"),
    "label": ("class", "label", "name", "category", "class_name"),
    "xmin": ("xmin", "x1", "left"),
    "ymin": ("ymin", "y1", "top"),
    "xmax": ("xmax", "x2", "right"),
    "ymax": ("ymax", "y2", "bottom"),
}
_UDACITY = (
    "image",
    "xmin",
    "ymin",
    "xmax",
    "ymax",
    "occluded",
    "label",
)  # of its second data set


@SOURCES.register("csv")
def open_csv(settings: LabelSettings) -> LabelSource:
    """Open the images listed in a table; they are searched in `--pictures`, otherwise beside it."""
    file = settings.source
    if not file.is_file():
        raise UserError(f"--source {file}: expected a CSV file")
    found = _read(file)
    image_folder = Path(settings.pictures) if settings.pictures else file.parent
    paths = [path for path in sorted(find_images(image_folder, image_folder)) if Path(path).name in found]
    if not paths:
        raise UserError(
            f"{image_folder}: no image of {file.name} found, such as {next(iter(found), '')}; set --pictures"
        )
    names = read_class_names(settings.names) or tuple(
        sorted({one.name for about in found.values() for one in about.objects})
    )
    notes = [f"{missing} of {len(found)} images not found"] if (missing := len(found) - len(paths)) else []
    return LabelSource(
        names, images_below(image_folder, paths, settings.split), lambda image: found[image.path.name], notes
    )


def _read(file: Path) -> dict[str, FileObjects]:
    """Read the objects of each image, by file name."""
    text = read_text(file, "CSV file")
    first = text.split("\n", 1)[0]
    comma = "," in first
    rows = list(csv.reader(io.StringIO(text), delimiter="," if comma else " "))
    if comma:
        header = [cell.strip().lower() for cell in rows[0]]
        columns = {key: next((header.index(n) for n in names if n in header), -1) for key, names in _COLUMNS.items()}
        if missing := [key for key, column in columns.items() if column < 0]:
            raise UserError(f"{file}:1: no column for {', '.join(missing)}; the first line must name the columns")
        rows = rows[1:]
    else:
        columns = {name: column for column, name in enumerate(_UDACITY)}
    found: dict[str, FileObjects] = {}
    for number, row in enumerate(rows, 2 if comma else 1):
        if not any(row):
            continue
        try:
            image, label = (row[columns[key]].strip() for key in ("image", "label"))
            box = np.array([float(row[columns[side]]) for side in ("xmin", "ymin", "xmax", "ymax")], np.float64)
        except (IndexError, ValueError) as error:
            raise UserError(f"{file}:{number}: expected an image, a label and four numbers") from error
        about = found.setdefault(Path(image.replace("\\", "/")).name, FileObjects())
        about.objects.append(LabelledObject(label, box, where=f"{file.name}:{number}"))
    return found
