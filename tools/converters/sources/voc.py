"""Pascal VOC XML, as utils/datasets/labels/readers/voc.py reads it."""

from __future__ import annotations

from pathlib import Path

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import Source, works_below
from tools.converters.split_folders import named, opened
from utils.core.log import progress
from utils.datasets.labels.annotation_paths import annotation_files
from utils.datasets.labels.readers.voc import find_voc_images, read_voc_file


@SOURCES.register("voc")
def open_voc(settings: LabelSettings) -> Source:
    """Return the images of a VOC tree or a folder of images with XML files."""
    data = opened(settings, "voc")
    works = []
    for split, places in data.splits.items():
        data.split(split)
        for place in places:
            paths = sorted(dict.fromkeys(find_voc_images(place, data.root)))
            below = place if place.is_dir() else (Path(paths[0]).parent if paths else place)
            works += works_below(below, paths, split)
    files = dict(zip([w.image for w in works], annotation_files([str(w.image) for w in works], ".xml"), strict=True))
    names = data.names or {
        one.name
        for file in progress(files.values(), len(files), "looking for classes", "file")
        for one in read_voc_file(Path(file)).objects
    }
    return Source(named(data, names), works, lambda work: read_voc_file(Path(files[work.image])))
