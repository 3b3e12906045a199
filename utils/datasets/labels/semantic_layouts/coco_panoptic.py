"""COCO's panoptic format: the class of each pixel is that of its segment, things first, then stuff."""

from __future__ import annotations

import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.data_config import DataConfig
from utils.datasets import SEMANTIC_READERS
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.panoptic_table import open_panoptic_split
from utils.datasets.labels.readers.coco_panoptic import match_panoptic_images, unlisted_fault
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.semantic_layout import Layout, SemanticSplitFiles, default_table, require_semantic


def read_coco_panoptic(data: DataConfig, split: str) -> SemanticSplitFiles:
    """List the images of a split and their maps; void pixels are unlabelled."""
    found = open_panoptic_split(data, split)
    images, rows = match_panoptic_images(data, split, found)

    def read_values(image: int) -> np.ndarray:
        numbered = found.read(rows[image])
        path = found.map_path(rows[image])
        if fault := unlisted_fault(path, numbered):
            raise ImageFault(fault)
        classes = found.table.classes[found.table.rows(rows[image])]
        return np.append(IGNORED_PIXEL, classes).astype(np.uint8)[numbered.numbers]

    maps = [found.map_path(row) for row in rows]
    name = f"{found.source.stem}.{short_hash([*map(str, data.split(split))])}.semantic{CACHE_SUFFIX}"
    return SemanticSplitFiles(
        images=images,
        masks=maps,
        tables=default_table(require_semantic(data))[None],
        table_of=np.zeros(len(images), np.uint8),
        cache=found.source.with_name(name),
        notes=list(found.notes),
        stamped=[*images, *maps, str(found.source)],
        read_values=read_values,
    )


SEMANTIC_READERS.register("coco-panoptic")(Layout(read_coco_panoptic, options=()))
