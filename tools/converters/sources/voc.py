"""Reader of Pascal VOC XML, with the parser of utils/datasets/labels/readers/voc.py."""

from __future__ import annotations

from pathlib import Path

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import LabelSource, images_below
from tools.converters.split_folders import open_dataset, resolve_class_names
from utils.core.log import progress
from utils.datasets.labels.annotation_paths import annotation_files
from utils.datasets.labels.readers.voc import find_voc_images, read_voc_file


@SOURCES.register("voc")
def open_voc(settings: LabelSettings) -> LabelSource:
    """Open a VOC tree or a folder of images with XML files."""
    data = open_dataset(settings, "voc")
    images = []
    for split in data.splits:
        for path in data.split(split):
            found = sorted(dict.fromkeys(find_voc_images(path, data.root)))
            folder = path if path.is_dir() else (Path(found[0]).parent if found else path)
            images += images_below(folder, found, split)
    paths = [image.path for image in images]
    files = dict(zip(paths, annotation_files([str(path) for path in paths], ".xml"), strict=True))
    names = data.names or {
        one.name
        for file in progress(files.values(), len(files), "collecting classes", "file")
        for one in read_voc_file(Path(file)).objects
    }
    return LabelSource(resolve_class_names(data, names), images, lambda image: read_voc_file(Path(files[image.path])))
