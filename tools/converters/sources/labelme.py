"""LabelMe JSON, as utils/datasets/labels/readers/labelme.py reads it."""

from __future__ import annotations

from pathlib import Path

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import IGNORE, Source, Work
from tools.converters.split_folders import image_works, named, opened
from utils.core.log import progress
from utils.datasets.labels.annotation_objects import FileObjects
from utils.datasets.labels.annotation_paths import annotation_files
from utils.datasets.labels.readers.labelme import read_labelme_file


@SOURCES.register("labelme")
def open_labelme(settings: LabelSettings) -> Source:
    """Return the images of a folder with LabelMe files; `--only` chooses one kind of shape."""
    data = opened(settings, "labelme")
    works = image_works(data)
    files = dict(zip([w.image for w in works], annotation_files([str(w.image) for w in works], ".json"), strict=True))
    names = data.names or {
        one.name
        for file in progress(files.values(), len(files), "looking for classes", "file")
        for one in read_labelme_file(Path(file)).objects
    }
    classes = named(data, names)

    def read(work: Work) -> FileObjects:
        found = read_labelme_file(Path(files[work.image]), (*classes, IGNORE))
        if settings.only != "all":
            found.objects = [one for one in found.objects if one.outlined == (settings.only == "polygon")]
        for one in found.objects:
            if one.name == IGNORE:
                one.aside = "ignore"
        return found

    return Source(classes, works, read)
