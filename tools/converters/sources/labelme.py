"""Reader of LabelMe JSON, with the parser of utils/datasets/labels/readers/labelme.py."""

from __future__ import annotations

from pathlib import Path

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import IGNORE, LabelSource, SourceImage
from tools.converters.split_folders import list_images, open_dataset, resolve_class_names
from utils.core.log import progress
from utils.datasets.labels.annotation_objects import FileObjects
from utils.datasets.labels.annotation_paths import annotation_files
from utils.datasets.labels.readers.labelme import read_labelme_file


@SOURCES.register("labelme")
def open_labelme(settings: LabelSettings) -> LabelSource:
    """Open a folder of images with LabelMe files; `--only` selects one kind of shape."""
    data = open_dataset(settings, "labelme")
    images = list_images(data)
    paths = [image.path for image in images]
    files = dict(zip(paths, annotation_files([str(path) for path in paths], ".json"), strict=True))
    names = data.names or {
        one.name
        for file in progress(files.values(), len(files), "collecting classes", "file")
        for one in read_labelme_file(Path(file)).objects
    }
    classes = resolve_class_names(data, names)

    def read(image: SourceImage) -> FileObjects:
        found = read_labelme_file(Path(files[image.path]), (*classes, IGNORE))
        if settings.only != "all":
            found.objects = [one for one in found.objects if one.outlined == (settings.only == "polygon")]
        for one in found.objects:
            if one.name == IGNORE:
                one.aside = "ignore"
        return found

    return LabelSource(classes, images, read)
